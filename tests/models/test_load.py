"""Opening models: folders, .gguf files, built-in names, hub ids; and everything wrong with them."""

import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError, URLError

import huggingface_hub.constants
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import lightstride.errors
from helpers.agree import assert_close_logits, assert_same_weights
from helpers.cuts import cut_block, logits
from helpers.toys import (
    byte_tokenizer,
    tiny_gemma3,
    tiny_llama,
    tiny_mistral,
    tiny_qwen2,
    tiny_qwen3,
)
from lightstride.errors import ModelError, NetworkError, UnknownFamilyError
from lightstride.export.gguf.weights import ModelWeights
from lightstride.export.gguf.write import write_gguf
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening import builtin, gguf, load
from lightstride.models.opening.builtin import BUILT_IN, BuiltIn, gguf_file
from lightstride.models.opening.load import load_model, load_tokenizer


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
        "weights of .* are truncated or damaged",
    ),
    "almost no weights": (
        lambda folder: cut_file(folder / "model.safetensors", 5),
        "weights of .* are truncated or damaged",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "weights of .* cannot be read: .*model.safetensors",
    ),
    "other sizes": (
        lambda folder: set_config(folder, intermediate_size=50),
        "in other sizes than its config.json says, the weights model.layers.0.mlp.down_proj.weight",
    ),
    "too few blocks": (
        lambda folder: set_config(folder, num_hidden_layers=3),
        "lacks the weights model.layers.2.input_layernorm.weight and 8 more",
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
        "config of .* cannot be read: .*JSON",
    ),
    "impossible config": (
        lambda folder: set_config(folder, num_attention_heads=5),
        "config of .* cannot be read",
    ),
    "another family": (
        lambda folder: set_config(folder, model_type="gpt2"),
        "'gpt2' is not supported; supported: gemma3_text, llama, mistral, opt, phi3, qwen2, qwen3",
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
    "damaged": (
        lambda folder: (folder / "tokenizer.json").write_text('{"model": 3}'),
        "tokenizer of .* cannot be read",
    ),
}
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


def trained_tokenizer(*, digits: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with merges, as .gguf files hold them; digits may be words."""
    tokenizer = Tokenizer(models.BPE())
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes])
        if digits
        else by_bytes
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=250, show_progress=False, initial_alphabet=list(string.digits)
    )
    tokenizer.train_from_iterator([lightstride.errors.__doc__], trainer)
    tokenizer.add_special_tokens(["<bos>", "<eos>", "<pad>", "<unk>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template="{{ messages }}",
    )


def write(
    model: PreTrainedModel, path: Path, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    geometry = adapter_for(model.config).geometry(model.config)
    words = tokenizer or trained_tokenizer()
    write_gguf(ModelWeights(model), model.config, geometry, words, path, dtype="f32", name="toy")
    return path


def llama3() -> PreTrainedModel:
    """A toy whose positions are stretched as Llama 3's are."""
    config = tiny_llama().config
    config.rope_parameters = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return type(tiny_llama())(config).eval()


@pytest.mark.parametrize(
    "build",
    [
        tiny_llama,
        lambda: tiny_llama(tied=False, head_dim=16),
        llama3,
        lambda: tiny_mistral(sliding_window=None),
        tiny_qwen2,
        tiny_qwen3,
        tiny_gemma3,
    ],
    ids=["llama", "llama untied", "llama3", "mistral", "qwen2", "qwen3", "gemma3"],
)
def test_gguf_file_is_the_model_it_was_written_from(build, tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path / "cache"))
    model = build()
    path = write(model, tmp_path / "toy.gguf")
    read = load_model(str(path))
    torch.testing.assert_close(logits(read), logits(model), atol=1e-5, rtol=0)
    assert not hasattr(read.config, "quantization_config")
    tokenizer, original = load_tokenizer(str(path)), trained_tokenizer()
    if read.config.model_type != "gemma3_text":  # whose tokenizer is of another kind in real files
        text = "The model cannot be read\n\tor is not what it says"
        assert tokenizer(text)["input_ids"] == original(text)["input_ids"]
    assert tokenizer.chat_template == original.chat_template
    ends = original.convert_tokens_to_ids(["<eos>", "<|im_end|>"])
    assert read.generation_config.eos_token_id == ends
    read.save_pretrained(tmp_path / "saved")


def test_digits_in_a_gguf_file_stay_words(tmp_path, monkeypatch):
    """SmolLM's tokenizer is one of these."""
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path / "cache"))
    original = trained_tokenizer(digits=True)
    read = load_tokenizer(str(write(tiny_llama(), tmp_path / "toy.gguf", original)))
    text = "one  12\n\n 3"
    assert read(text)["input_ids"] == original(text)["input_ids"]
    assert read(text)["input_ids"] != trained_tokenizer()(text)["input_ids"]
    monkeypatch.setattr(gguf, "SPLIT_DIGITS", ())
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path / "other"))
    with pytest.raises(ModelError, match=r"splits text in a way \('smollm'\) that cannot be read"):
        load_tokenizer(str(tmp_path / "toy.gguf"))


def test_gguf_file_is_converted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path / "cache"))
    path = write(tiny_llama(), tmp_path / "toy.gguf")
    first = logits(load_model(str(path)))
    (converted,) = (tmp_path / "cache" / "gguf").iterdir()
    stamp = (converted / "config.json").stat().st_mtime_ns
    assert_close_logits(logits(load_model(str(path))), first)
    assert (converted / "config.json").stat().st_mtime_ns == stamp
    write(tiny_llama(seed=1), path)
    assert (logits(load_model(str(path))) - first).abs().max() > 1e-2


def test_gguf_files_that_cannot_be_read_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path / "cache"))
    path = write(tiny_llama(), tmp_path / "toy.gguf")
    for end in (4, 1000, path.stat().st_size - 100):
        cut = tmp_path / f"cut{end}.gguf"
        shutil.copyfile(path, cut)
        cut_file(cut, end)
        with pytest.raises(ModelError, match="truncated, or not") as error:
            load_model(str(cut))
        assert one_line(error)
    (tmp_path / "text.gguf").write_text("no model at all " * 100)
    with pytest.raises(ModelError, match="truncated, or not"):
        load_model(str(tmp_path / "text.gguf"))
    with pytest.raises(ModelError, match="other tensors than transformers reads"):
        load_model(str(write(tiny_llama(bias=True), tmp_path / "bias.gguf")))
    uneven = tiny_llama()
    cut_block(uneven, 1)
    uneven.config.per_layer_config = {
        1: {"intermediate_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1}
    }
    with pytest.raises(UnknownFamilyError, match="'deci' is not supported; supported: gemma3, l"):
        load_model(str(write(uneven, tmp_path / "deci.gguf")))
    assert not list((tmp_path / "cache").glob("*/*"))


def test_built_in_model_that_is_not_installed_says_how(monkeypatch):
    monkeypatch.setattr(builtin, "find_spec", lambda _: None)
    for name, model in BUILT_IN.items():
        with pytest.raises(ModelError, match=f"{name} is not installed; pip install") as error:
            load_model(name)
        assert model.install in str(error.value)


@pytest.mark.parametrize("sound", [True, False])
def test_built_in_model_in_pieces_is_put_together(sound, tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    for part, data in ((1, b"first "), (2, b"second" if sound else b"other")):
        (tmp_path / f"toy_part{part}").mkdir()
        (tmp_path / f"toy_part{part}" / "__init__.py").write_text("raise RuntimeError('imported')")
        (tmp_path / f"toy_part{part}" / "piece").write_bytes(data)
    toy = BuiltIn(
        parts=(("toy_part1", "piece"), ("toy_part2", "piece")),
        install="pip install toy",
        sha256="92088ec140fc553e4b1ede202edccb65a807bbf8a38d765a3ad38013c0f13688",
    )
    monkeypatch.setattr(builtin, "BUILT_IN", {"toy": toy})
    if sound:
        assert gguf_file("toy").read_bytes() == b"first second"
        assert gguf_file("toy").read_bytes() == b"first second"
    else:
        with pytest.raises(ModelError, match="damaged; install them again"):
            gguf_file("toy")
        assert not list(tmp_path.glob("cache/*/*"))


@pytest.mark.slow
def test_smollm2_answers(monkeypatch):
    monkeypatch.delenv("LIGHTSTRIDE_CACHE")
    model, tokenizer = load_model("smollm2-135m"), load_tokenizer("smollm2-135m")
    assert model.generation_config.eos_token_id == [2, 0]
    assert tokenizer.chat_template
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(answer[0]).endswith(" is Paris.")
