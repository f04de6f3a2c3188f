"""Models by name, or one line that says why not; masked attention reads each KV head once."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError, URLError

import huggingface_hub.constants
import pytest
import torch

from helpers.agree import assert_close_logits, assert_same_weights
from helpers.toys import (
    byte_tokenizer,
    tiny_llama,
)
from lightstride import cli
from lightstride.errors import ModelError, NetworkError
from lightstride.generate.chat_template import token_ids
from lightstride.models.families.registry import ADAPTERS
from lightstride.models.opening import load
from lightstride.models.opening.load import force_gqa_on_cpu, load_model, load_tokenizer


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model folder; not to be changed."""
    folder = tmp_path_factory.mktemp("dense")
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(dense: Path, tmp_path: Path) -> Path:
    """A sound model folder to spoil."""
    return Path(shutil.copytree(dense, tmp_path / "model"))


def set_config(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def cut_file(path: Path, end: int) -> None:
    path.write_bytes(path.read_bytes()[:end])


def spoil_weight(folder: Path, value: float) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    model.save_pretrained(folder)


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated weights": (
        lambda folder: cut_file(folder / "model.safetensors", -100),
        "model.safetensors is truncated or damaged",
    ),
    "almost no weights": (
        lambda folder: cut_file(folder / "model.safetensors", 5),
        "model.safetensors is truncated or damaged",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "has no weights: neither model.safetensors",
    ),
    "other sizes": (
        lambda folder: set_config(folder, intermediate_size=50),
        "in other sizes than its config.json says, the weights model.layers.0.mlp.down_proj.weight",
    ),
    "too few blocks": (
        lambda folder: set_config(folder, num_hidden_layers=3),
        "config.json asks for 3 layers; there are weights of 2",
    ),
    "too many blocks": (
        lambda folder: set_config(folder, num_hidden_layers=1),
        "no place for: model.layers.1.input_layernorm.weight and 8 more",
    ),
    "NaN": (lambda folder: spoil_weight(folder, float("nan")), "NaN or infinite weights.*up_proj"),
    "infinity": (lambda folder: spoil_weight(folder, float("inf")), "NaN or infinite weights"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
    "damaged config": (
        lambda folder: cut_file(folder / "config.json", 30),
        "config.json is not JSON",
    ),
    "impossible config": (
        lambda folder: set_config(folder, num_attention_heads=5),
        "config of .* cannot be read",
    ),
    "another family": (
        lambda folder: set_config(folder, model_type="gpt2"),
        "'gpt2' is not supported; supported: "
        + ", ".join(sorted(t for adapter in ADAPTERS for t in adapter.model_types)),
    ),
}


def one_line(error: pytest.ExceptionInfo[BaseException]) -> bool:
    return "\n" not in str(error.value) and 0 < len(str(error.value)) < 400


@pytest.mark.parametrize("spoiled", SPOILED)
def test_spoiled_folder_is_refused_in_one_line(spoiled, folder, capfd):
    spoil, message = SPOILED[spoiled]
    spoil(folder)
    capfd.readouterr()
    with pytest.raises(ModelError, match=message) as error:
        load_model(str(folder))
    assert one_line(error)
    assert capfd.readouterr() == ("", "")


def test_sound_folder_is_read_in_the_wanted_type(dense):
    model = load_model(str(dense))
    assert (model.dtype, model.training) == (torch.float32, False)
    assert_same_weights(model, tiny_llama())
    assert load_model(str(dense), dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load_tokenizer(str(dense))("hé")["input_ids"] == [104, 195, 169]


SPOILED_TOKENIZERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "too many ids": (
        lambda folder: set_config(folder, vocab_size=200, **dict.fromkeys(SPECIAL, 3)),
        "ids up to 259, but the model's vocabulary ends at 199",
    ),
    "end token outside": (
        lambda folder: set_config(folder, vocab_size=257, **dict.fromkeys(SPECIAL, 3)),
        "ids up to 259, but the model's vocabulary ends at 256",
    ),
    "no tokenizer": (
        lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
        "tokenizer of .* cannot be read",
    ),
    "no unknown token": (
        lambda folder: edit_tokenizer(folder, without_letters_and_unknown),
        "tokenizer of .* cannot be read: Unk token `nope` not found",
    ),
    "damaged": (
        lambda folder: (folder / "tokenizer.json").write_text('{"model": 3}'),
        "tokenizer of .* cannot be read",
    ),
}


def edit_tokenizer(folder: Path, edit: Callable[[dict], object]) -> None:
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    edit(document)
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")


def without_letters_and_unknown(document: dict) -> None:
    letters = list(document["model"]["vocab"])
    for letter in letters:
        if letter not in "abc":
            document["model"]["vocab"].pop(letter)
    document["model"]["unk_token"] = "nope"


def backtracking(document: dict) -> None:
    """As long as the text is, so many ways there are to match it, to the power of two."""
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
    parts = [{**split, "invert": False}, document["pre_tokenizer"]]
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}


def test_a_pattern_that_backtracks_for_ever_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_tokenizer(folder, backtracking)
    with pytest.raises(ModelError, match=r"cannot read this text: Onig.*retry-limit"):
        token_ids(load_tokenizer(str(folder)), "a" * 40 + "!", special=False)
    (folder / "text.txt").write_text("a" * 4000 + "!", "utf-8")
    judged = ["evaluate", str(folder), "--perplexity", str(folder / "text.txt"), "--device", "cpu"]
    assert cli.main(judged) == 2
    err = capsys.readouterr().err
    assert "lightstride: error: a library cannot take what it read: Onig" in err
    assert "Traceback" not in err


SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


@pytest.mark.parametrize("spoiled", SPOILED_TOKENIZERS)
def test_spoiled_tokenizer_is_refused_in_one_line(spoiled, folder, capfd):
    spoil, message = SPOILED_TOKENIZERS[spoiled]
    spoil(folder)
    with pytest.raises(ModelError, match=message) as error:
        load_tokenizer(str(folder))
    assert one_line(error)
    assert capfd.readouterr() == ("", "")


def test_an_added_token_may_lie_outside(folder):
    """As Gemma's image token does."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    assert len(load_tokenizer(str(folder))) == 261


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nothing/here", "there is no file or folder ./nothing/here"),
        ("nothing.gguf", "there is no file or folder nothing.gguf"),
        (__file__, "is a file; give a folder, a .gguf file, or a hub id"),
    ],
)
def test_what_is_not_there_is_said_to_be_so(source, message):
    with pytest.raises(ModelError, match=message):
        load_model(source)


@pytest.mark.parametrize("how", ["offline mode", "unreachable"])
@pytest.mark.parametrize("read", [load_model, load_tokenizer])
def test_hub_id_without_a_network_names_what_works_without(read, how, monkeypatch):
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", how == "offline mode")
    monkeypatch.setattr(load, "urlopen", unreachable)
    with pytest.raises(NetworkError, match=r"folder, a \.gguf file.*smollm2-135m") as error:
        read("some/model")
    assert one_line(error)


def test_a_hub_that_answers_is_a_network(monkeypatch):
    def refuses(*_: object, **__: object) -> None:
        raise HTTPError("https://hub", 403, "no", None, None)  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(load, "urlopen", refuses)
    assert not load.is_local("some/model")


NAME = "TRANSFORMERS_SDPA_FORCE_GQA"


def test_it_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "0")
    tiny_llama().save_pretrained(tmp_path / "model")
    model = load_model(str(tmp_path / "model"))
    tokens = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[1, :7] = mask[2, :12] = 0
    with torch.inference_mode():
        copied = model(tokens, attention_mask=mask).logits
        monkeypatch.setenv(NAME, "1")
        shared = model(tokens, attention_mask=mask).logits
    assert_close_logits(shared[mask.bool()], copied[mask.bool()])


def test_cuda_keeps_its_own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "")  # so that it is put back after the test
    monkeypatch.delenv(NAME)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    force_gqa_on_cpu()
    assert NAME not in os.environ
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    force_gqa_on_cpu()
    assert os.environ[NAME] == "1"
