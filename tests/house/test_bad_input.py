"""A user's mistake is one line on stderr and exit code 2, and nothing is left that looks whole.

To add a case: one row of `CASES`.  `spoil` does something to the toy model's folder first;
`{model}`, `{out}`, `{texts}` and `{folder}` in the arguments stand for paths.
"""

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.toys import byte_tokenizer, tiny_llama
from lightstride import cli

PRUNE = (
    "prune {model} -o {out} --sparsity 0.25 --preset demo --calibration {texts} --window 64 "
    "--calibration-tokens 256 --search-tokens 256 --held-out-tokens 256 --search none --rounds 1"
)


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return spoil


def config(**values: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return spoil


def truncate(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-100])

    return spoil


def make(name: str, content: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return spoil


@dataclass(frozen=True)
class Case:
    arguments: str
    said: str
    spoil: Callable[[Path], None] = lambda _: None


def pruning(flags: str, said: str, spoil: Callable[[Path], None] = lambda _: None) -> Case:
    """A pruning run with other flags; a flag that is given twice counts the second time."""
    return Case(f"{PRUNE} {flags}", said, spoil)


def with_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")


def with_infinity(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.self_attn.v_proj.weight"][0, 0] = float("inf")


def with_one_more_token(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<more>"})
    tokenizer.save_pretrained(folder)


CASES = {
    "sparsity 0": pruning("--sparsity 0", "--sparsity 0 is not allowed"),
    "sparsity 1": pruning("--sparsity 1", "--sparsity 1 is not allowed"),
    "sparsity 25": pruning("--sparsity 25", "it must be above 0 and below 1"),
    "sparsities unsorted": pruning("--sparsity 0.5 0.25", "0.5 0.25 is not allowed"),
    "sparsities twice": pruning("--sparsity 0.5 0.5", "0.5 0.5 is not allowed"),
    "sparsity under the floors": pruning("--sparsity 0.99", "sparsity 0.99 cannot be reached"),
    "unknown family": pruning("", "supported: ", config(model_type="gpt2")),
    "no family at all": pruning("", "no-such-family", config(model_type="no-such-family")),
    "too little text": pruning("--calibration-tokens 999999", "999,936 are needed"),
    "windows too long": pruning("--window 4096", "4096"),
    "text that is not there": pruning("--calibration {folder}/none.txt", "no text source"),
    "text that is not text": pruning(
        "--calibration {folder}/x.txt", "not UTF-8", make("../x.txt", b"\xff")
    ),
    "a hub text without a network": pruning("--calibration owner/name", "cannot reach the hub"),
    "NaN weights": pruning("", "model.layers.1.mlp.up_proj.weight", weights(with_nan)),
    "infinite weights": pruning("", "self_attn.v_proj.weight", weights(with_infinity)),
    "a tokenizer that does not fit": pruning("", "has ids up to 260", with_one_more_token),
    "a config that contradicts itself": pruning("", "cannot be read", config(vocab_size=100)),
    "no tokenizer": pruning("", "tokenizer", lambda f: (f / "tokenizer.json").unlink()),
    "an output that is not empty": pruning("", "out", make("../out/mine.txt", b"mine")),
    "an output that is a file": pruning("", "out", make("../out", b"mine")),
    "truncated weights": pruning("", "truncated or damaged", truncate("model.safetensors")),
    "no weights": pruning("", "model", lambda f: (f / "model.safetensors").unlink()),
    "a damaged config": pruning("", "config.json", truncate("config.json")),
    "a GGUF that is none": Case(
        PRUNE.replace("{model}", "{folder}/x.gguf"), "x.gguf", make("../x.gguf", b"GGUF" * 9)
    ),
    "a model that is not there": Case(PRUNE.replace("{model}", "{folder}/none"), "none"),
    "a hub model without a network": Case(PRUNE.replace("{model}", "owner/name"), "owner/name"),
    "an unknown built-in": Case(PRUNE.replace("{model}", "smollm9"), "smollm9"),
    "no such device": pruning("--device cuda", "--device cuda is not on this machine")
    if not torch.cuda.is_available()
    else pruning("--device mps", "--device mps is not on this machine"),
    "an engine nobody knows": pruning("--target tensorrt", "any, hf, vllm"),
    "nothing to say": Case("generate {model} -p=", "-p '' is not allowed"),
    "a prompt longer than the context": Case("generate {model} -p " + 600 * "x", "512"),
    "confidence 0": Case("generate {model} -p x --confidence 0", "above 0 and at most 1"),
    "an unknown mode": Case("generate {model} -p x --mode fast", "--mode"),
    "a temperature below 0": Case("generate {model} -p x --temperature=-1", "--temperature -1.0"),
    "an answer of no tokens": Case("generate {model} -p x --max-new-tokens 0", "from 1 to"),
    "a model to ask that is not there": Case("generate {folder}/none -p x", "none"),
    "NaN weights to ask": Case("generate {model} -p x", "up_proj", weights(with_nan)),
    "nothing to measure": Case("evaluate {model}", "without --perplexity, --tasks"),
    "a stride over the window": Case(
        "evaluate {model} --perplexity pydoc --window 64 --stride 65", "between 1 and the window"
    ),
    "too little text to evaluate": Case(
        "evaluate {model} --perplexity {folder}/x.txt -o {out}",
        "2,048 are needed",
        make("../x.txt", b"Short."),
    ),
    "a task nobody knows": Case(
        "evaluate {model} --tasks arc_medium --task-data {folder} -o {out}", "arc_medium"
    ),
    "a batch of none": Case("bench {model} --batch 0", "--batch 0 is not allowed"),
    "no model to measure": Case("bench {folder}/none -o {out}", "none"),
    "no model to export": Case("export {folder}/none -o {out}", "none"),
    "an export over a file": Case("export {model} -o {out}", "out", make("../out", b"mine")),
    "no results to report": Case("report {folder}/none -o {out}", "none"),
    "a damaged result to report": Case(
        "report {folder}/run -o {out}", "result.json", make("../run/result.json", b"{")
    ),
    "more devices than groups": pruning("--tp 64", "--tp 64 allows no shape"),
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "model"
    tiny_llama(num_channels=64).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    texts = [{"text": f"Text {number}: {'words and ' * 20}"} for number in range(60)]
    (folder.parent / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    return folder


@pytest.fixture
def spoiled(toy: Path, tmp_path: Path) -> Path:
    shutil.copytree(toy, tmp_path / "model")
    return tmp_path / "model"


def filled(arguments: str, model: Path, toy: Path) -> list[str]:
    """The words of a command line, a repeated flag given once, as it was given last."""
    paths = {
        "model": model,
        "out": model.parent / "out",
        "texts": toy.parent / "texts.jsonl",
        "folder": model.parent,
    }
    first, *groups = arguments.split(" --")
    last = {group.split()[0]: group.split()[1:] for group in groups}
    flags = [word for flag, values in last.items() for word in (f"--{flag}", *values)]
    return [word.format(**paths) for word in (*first.split(), *flags)]


def looks_whole(folder: Path) -> bool:
    return any(folder.rglob("config.json")) or any(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_half_written(
    name: str, spoiled: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    case.spoil(spoiled)
    assert cli.main(filled(case.arguments, spoiled, toy)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lightstride: error: "), err
    assert err.count("\n") == 1, err
    assert case.said in err
    assert not looks_whole(spoiled.parent / "out")


def test_the_row_that_all_cases_spoil_is_right(
    spoiled: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*filled(PRUNE, spoiled, toy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "prune"
    assert looks_whole(spoiled.parent / "out")


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file can grow over 16 KiB, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk(
    spoiled: Path, toy: Path, small_disk: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(filled(PRUNE, spoiled, toy)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("lightstride: error: cannot write"), err
    assert "Traceback" not in err
    assert not looks_whole(spoiled.parent / "out")
