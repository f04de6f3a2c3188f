"""No file of a model's runs code unasked, whatever stands on standard input.

Every trap writes a canary when its code runs.  Each is opened by each command, with "y" on
standard input and without; none may run, none may be asked about, and a folder that needs code is
refused in a line that names the file.
"""

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import pytest
import torch

from helpers.smash_toys import toy
from helpers.toys import byte_tokenizer, tiny_llama
from helpers.trained_tokenizer import trained_tokenizer
from lightstride import cli
from lightstride.checkpoint import save_checkpoint
from lightstride.export.gguf.weights import ModelWeights
from lightstride.export.gguf.write import write_gguf
from lightstride.models.families.registry import adapter_for


class Bomb:
    """Runs code where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.canary),)


def change(path: Path, **values: object) -> None:
    there = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**there, **values}))


def code(folder: Path, name: str, canary: Path) -> None:
    body = (
        f"import os\nos.mkdir({str(canary)!r})\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class Evil(LlamaConfig):\n    model_type = 'evil'\n"
        "class EvilModel(LlamaForCausalLM):\n    config_class = Evil\n"
        "class EvilWords(PreTrainedTokenizerFast):\n    pass\n"
        "def generate(model, *a, **k):\n    return None\n"
    )
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(body)


AUTO = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.EvilModel"}


def known_type(folder: Path, canary: Path) -> None:
    code(folder, "evil.py", canary)
    change(folder / "config.json", auto_map=AUTO)


def unknown_type(folder: Path, canary: Path) -> None:
    known_type(folder, canary)
    change(folder / "config.json", model_type="evil", architectures=["EvilModel"])


def our_type(folder: Path, canary: Path) -> None:
    """A name as of our own models, which come with a modeling file."""
    known_type(folder, canary)
    change(folder / "config.json", model_type="lightstride_evil")


def our_layered(folder: Path, canary: Path) -> None:
    known_type(folder, canary)
    change(folder / "config.json", model_type="lightstride_llama")


def tokenizer(folder: Path, canary: Path) -> None:
    code(folder, "evil.py", canary)
    change(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.EvilWords", "evil.EvilWords"]},
        tokenizer_class="EvilWords",
    )


def our_tokenizer(folder: Path, canary: Path) -> None:
    tokenizer(folder, canary)
    change(folder / "config.json", model_type="lightstride_llama")


def tokenizer_by_config(folder: Path, canary: Path) -> None:
    code(folder, "evil.py", canary)
    change(folder / "config.json", auto_map={"AutoTokenizer": "evil.EvilWords"})


def of_another_repository(folder: Path, canary: Path) -> None:
    change(folder / "config.json", auto_map={"AutoConfig": "someone/evil--evil.Evil"})


def processor(folder: Path, canary: Path) -> None:
    code(folder, "evil.py", canary)
    for name in ("processor_config.json", "preprocessor_config.json"):
        change(folder / name, auto_map={"AutoProcessor": "evil.EvilWords"})


def custom_generate(folder: Path, canary: Path) -> None:
    code(folder, "custom_generate/generate.py", canary)
    change(folder / "generation_config.json", custom_generate=str(folder))


def pickled(name: str) -> Callable[[Path, Path], None]:
    def trap(folder: Path, canary: Path) -> None:
        torch.save(Bomb(canary), folder / name, pickle_protocol=4)
        (folder / "model.safetensors").unlink()

    return trap


def pickled_index(folder: Path, canary: Path) -> None:
    (folder / "evil.bin").write_bytes(pickle.dumps(Bomb(canary)))
    (folder / "model.safetensors").rename(folder / "x.safetensors")
    weights = {"weight_map": {"model.norm.weight": "evil.bin"}}
    for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        (folder / name).write_text(json.dumps(weights))


def pickle_called_safetensors(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(canary)))


def pickles_beside(folder: Path, canary: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "tokenizer.pkl", "vocab.pkl"):
        (folder / name).write_bytes(pickle.dumps(Bomb(canary)))


def adapters(folder: Path, canary: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(canary)))
    change(folder / "adapter_config.json", base_model_name_or_path=str(folder), peft_type="LORA")


def kernels(folder: Path, canary: Path) -> None:
    change(folder / "config.json", attn_implementation="someone/evil-kernel")


def hidden_kernels(folder: Path, canary: Path) -> None:
    change(folder / "config.json", _attn_implementation="someone/evil-kernel")


def template(folder: Path, canary: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% for c in ''.__class__.__mro__[1].__subclasses__() %}{{ c }}{% endfor %}"
        f"{{{{ cycler.__init__.__globals__.os.mkdir({str(canary)!r}) }}}}"
    )


def base_of_grafts(folder: Path, canary: Path) -> None:
    base = folder.parent / "base"
    folder.rename(base)
    model = toy(tiny_llama())
    model.config.base = str(base)
    save_checkpoint(model, byte_tokenizer(), folder)
    unknown_type(base, canary)


def base_of_a_head(folder: Path, canary: Path) -> None:
    base = folder.parent / "base"
    folder.rename(base)
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    change(
        folder / "config.json",
        model_type="lightstride_headed",
        base="../base",
        base_fingerprint="0",
        drafter="eagle3",
    )
    unknown_type(base, canary)


def teacher(folder: Path, canary: Path) -> None:
    """A record that names a model with code as the one it was cut from."""
    base = folder.parent / "base"
    shutil.copytree(folder, base)
    change(folder / "lightstride.json", format=1, kind="prune", config={"model": str(base)})
    unknown_type(base, canary)


TRAPS: Mapping[str, tuple[Callable[[Path, Path], None], str]] = {
    "a known type": (known_type, "evil.py"),
    "an unknown type": (unknown_type, "evil.py"),
    "a type like ours": (our_type, ""),
    "layered": (our_layered, ""),
    "tokenizer": (tokenizer, "evil.py"),
    "tokenizer of a layered model": (our_tokenizer, ""),
    "tokenizer by config": (tokenizer_by_config, "evil.py"),
    "code of another repository": (of_another_repository, "evil.py"),
    "processor": (processor, "evil.py"),
    "custom_generate": (custom_generate, ""),
    "pytorch_model.bin": (pickled("pytorch_model.bin"), "pytorch_model.bin, a pickle"),
    "a .pt": (pickled("model.pt"), "model.pt, a pickle"),
    "an index of pickles": (pickled_index, "evil.bin"),
    "a pickle in disguise": (pickle_called_safetensors, "truncated or damaged"),
    "pickles beside": (pickles_beside, ""),
    "adapters": (adapters, "adapter_config.json"),
    "kernels": (kernels, "someone/evil-kernel"),
    "kernels, hidden": (hidden_kernels, "someone/evil-kernel"),
    "template": (template, ""),
    "base of grafts": (base_of_grafts, "evil.py"),
    "base of a head": (base_of_a_head, "evil.py"),
    "teacher": (teacher, ""),
}
COMMANDS = (
    "generate {model} -p ab --max-new-tokens 1",
    "export {model} -o {out}.gguf --to gguf",
    "prune {model} -o {out} --sparsity 0.3 --dry-run --machine h100",
    "recover {model} -o {out} --minutes 0.01 --text {text} --tokens 64 --held-out-tokens 64 "
    "--window 16",
)


class Watched(io.StringIO):
    """Standard input that holds answers, and tells whether it was read."""

    was_read = False

    def readline(self, *arguments: int) -> str:  # type: ignore[override]
        self.was_read = True
        return super().readline(*arguments)

    def read(self, *arguments: int) -> str:  # type: ignore[override]
        self.was_read = True
        return super().read(*arguments)


@pytest.mark.parametrize("name", TRAPS)
def test_nothing_runs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, canary = tmp_path / "model", tmp_path / "canary"
    save_checkpoint(tiny_llama(), byte_tokenizer(), model)
    spoil, said = TRAPS[name]
    spoil(model, canary)
    (tmp_path / "text.txt").write_text("a text of some length. " * 60)
    for number, (stdin, command) in enumerate(product(("y\n" * 9, ""), COMMANDS)):
        words = {
            "model": model,
            "out": tmp_path / f"out{number}",
            "text": tmp_path / "text.txt",
        }
        answers = Watched(stdin)
        monkeypatch.setattr("sys.stdin", answers)
        status = cli.main([word.format(**words) for word in command.split()])
        error = capsys.readouterr().err
        assert status in (0, 2)
        assert not canary.exists(), command
        assert not answers.was_read, command
        if said and command.startswith("generate"):
            assert status == 2
            assert said in error.splitlines()[-1]


@pytest.mark.parametrize("name", ["a known type", "an unknown type", "tokenizer"])
def test_what_is_allowed_does_run(name: str, tmp_path: Path) -> None:
    """The canary sings: these traps are real ones."""
    model, canary = tmp_path / "model", tmp_path / "canary"
    save_checkpoint(tiny_llama(), byte_tokenizer(), model)
    TRAPS[name][0](model, canary)
    cli.main(["generate", str(model), "-p", "ab", "--max-new-tokens", "1", "--trust-remote-code"])
    assert canary.exists()


def test_nothing_beside_a_gguf_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, words = tiny_llama(), trained_tokenizer()
    geometry = adapter_for(model.config).geometry(model.config)
    write_gguf(
        ModelWeights(model),
        model.config,
        geometry,
        words,
        tmp_path / "a.gguf",
        dtype="f32",
        name="",
    )
    save_checkpoint(model, words, tmp_path / "trap")
    for path in (tmp_path / "trap").iterdir():
        path.rename(tmp_path / path.name)
    canary = tmp_path / "canary"
    unknown_type(tmp_path, canary)
    tokenizer(tmp_path, canary)
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path / "cache"))
    answers = Watched("y\n" * 9)
    monkeypatch.setattr("sys.stdin", answers)
    assert (
        cli.main(["generate", str(tmp_path / "a.gguf"), "-p", "ab", "--max-new-tokens", "1"]) == 0
    )
    assert not canary.exists()
    assert not answers.was_read
