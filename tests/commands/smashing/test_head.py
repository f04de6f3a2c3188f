"""The command `smash --from-head`: a head's folder in, a checkpoint that answers out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.agree import assert_same_greedy
from helpers.ascii_tokenizer import ascii_tokenizer
from helpers.headed_toys import BLOCKS, KINDS, deep_toy, deep_uneven, random_head
from helpers.smash_toys import PROMPTS
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.checkpoint import open_decoder, save_checkpoint
from lightstride.commands.export import export
from lightstride.commands.smash import smash
from lightstride.config import ExportConfig, SmashRunConfig
from lightstride.errors import ConfigError, ExportError, ModelError
from lightstride.generate import Settings, generate
from lightstride.smash.decode.headed import HeadedDecoder
from lightstride.smash.model.eagle3 import Eagle3Head
from lightstride.smash.model.eagle3_files import read_head, write_head


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_checkpoint(deep_toy(), byte_tokenizer(), tmp_path / "base")
    return tmp_path / "base"


def publish(head: Eagle3Head, folder: Path, layout: str = "flat") -> Path:
    """The head as a publisher would put it up."""
    write_head(
        head,
        folder,
        layout=layout,  # type: ignore[arg-type]
        base="base",
        architectures=["LlamaForCausalLM"],
        num_blocks=BLOCKS,
    )
    return folder


def config_of(base: Path, head: Path, name: str = "out", **changes: object) -> SmashRunConfig:
    values = {"device": "cpu", "dtype": "float32", "from_head": str(head), **changes}
    return SmashRunConfig(model=str(base), output=str(base.parent / name), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["flat", "speculators"])
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_a_published_head_answers_as_its_base(
    base: Path, layout: str, changes: dict[str, object]
) -> None:
    head = random_head(**changes)
    config = config_of(base, publish(head, base.parent / "public", layout))
    numbers = smash(config)["numbers"]
    assert numbers["drafter"] == "eagle3"
    assert numbers["taps"] == list(head.config.taps)
    stored = json.loads((base.parent / "out" / "config.json").read_text())
    assert (stored["base"], stored["drafter"]) == ("../base", "eagle3")
    decoder = open_decoder(config.output)
    assert isinstance(decoder, HeadedDecoder)
    for name, tensor in head.state_dict().items():
        assert torch.equal(decoder.head.state_dict()[name], tensor), name
    asked = Settings(max_new_tokens=12, confidence=0.01, ignore_end_tokens=True)
    expected = generate(open_decoder(str(base)), PROMPTS, asked)
    for prompt, found, other in zip(
        PROMPTS, generate(decoder, PROMPTS, asked), expected, strict=True
    ):
        assert_same_greedy(decoder.model, prompt, found.tokens, other.tokens)


def test_base_and_checkpoint_can_be_moved_together(base: Path, tmp_path: Path) -> None:
    smash(config_of(base, publish(random_head(), tmp_path / "public")))
    shutil.rmtree(tmp_path / "public")
    (tmp_path / "moved").mkdir()
    for name in ("base", "out"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    decoder = open_decoder(str(tmp_path / "moved" / "out"))
    assert len(generate(decoder, [[1]], Settings(max_new_tokens=3))[0].tokens) > 0


def test_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    smash(config_of(base, publish(random_head(), tmp_path / "public")))
    shutil.rmtree(base)
    save_checkpoint(tiny_llama(num_layers=8, seed=1, tied=False), byte_tokenizer(), base)
    with pytest.raises(ModelError, match="belongs to the base"):
        open_decoder(str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 16}, "hidden size of 16; that of the base .* is 32"),
        ({"vocab_size": 300}, "vocabulary of 300; that of the base .* is 260"),
        ({"taps": (1, 3, 12)}, "the base has 8 blocks"),
    ],
)
def test_a_head_for_another_base_is_refused_before_anything_is_written(
    base: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    config = config_of(base, publish(random_head(**changes), tmp_path / "public"))
    with pytest.raises(ModelError, match=message):
        smash(config)
    assert not Path(config.output).exists()


def test_a_head_that_is_not_whole_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    folder = publish(random_head(), tmp_path / "public")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({name: t for name, t in tensors.items() if name != "fc.weight"}, path)
    with pytest.raises(ModelError, match=r"lacks fc\.weight"):
        smash(config_of(base, folder))


def test_flags_of_training_and_models_with_a_head_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is trained"):
        config_of(base, tmp_path, train_base=True)
    folder = publish(random_head(), tmp_path / "public")
    smash(config_of(base, folder))
    out = tmp_path / "out"
    with pytest.raises(ModelError, match="is smashed already"):
        smash(config_of(out, folder, "again"))
    with pytest.raises(ExportError, match="draft head, which is not written as decilm"):
        export(ExportConfig(model=str(out), output=str(tmp_path / "file"), to="decilm"))
    with pytest.raises(ExportError, match="no draft head"):
        export(ExportConfig(model=str(base), output=str(tmp_path / "file"), to="eagle3"))


def test_a_head_on_an_uneven_base_goes_to_vllm_alone(tmp_path: Path) -> None:
    save_checkpoint(deep_uneven(), byte_tokenizer(), tmp_path / "base")
    smash(config_of(tmp_path / "base", publish(random_head(), tmp_path / "public")))
    out = {"model": str(tmp_path / "out"), "output": str(tmp_path / "written")}
    with pytest.raises(ExportError, match=r"differ in width.*--to speculators"):
        export(ExportConfig(**out, to="eagle3"))
    with pytest.raises(ExportError, match=r"'deci'.*--to speculators"):
        export(ExportConfig(**out, to="gguf"))
    assert not (tmp_path / "written").exists()
    export(ExportConfig(**out, to="speculators"))


def test_a_head_becomes_a_gguf(tmp_path: Path) -> None:
    save_checkpoint(deep_toy(), ascii_tokenizer(), tmp_path / "base")
    smash(config_of(tmp_path / "base", publish(random_head(), tmp_path / "public")))
    written = ExportConfig(
        model=str(tmp_path / "out"), output=str(tmp_path / "head.gguf"), to="gguf", dtype="q8_0"
    )
    found = export(written)
    assert (found["architecture"], found["bytes"]) == (
        "eagle3",
        (tmp_path / "head.gguf").stat().st_size,
    )
    assert found["fallbacks"] == ["blk.0.ffn_down.weight: f16"]


@pytest.mark.parametrize("to", ["eagle3", "speculators"])
def test_an_exported_head_is_read_again(base: Path, tmp_path: Path, to: str) -> None:
    head = random_head()
    smash(config_of(base, publish(head, tmp_path / "public")))
    wanted = ExportConfig(
        model=str(tmp_path / "out"),
        output=str(tmp_path / "written"),
        to=to,  # type: ignore[arg-type]
    )
    assert export(wanted)["format"] == to
    document = json.loads((tmp_path / "written" / "config.json").read_text())
    assert document["norm_before_residual"] is False
    if to == "speculators":
        assert document["speculators_config"]["verifier"]["name_or_path"] == str(base.resolve())
    assert "layer_ids" not in json.dumps(document)
    again = read_head(tmp_path / "written", num_blocks=BLOCKS)
    for name, tensor in head.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_before_residual": True}, "norm_before_residual"),
        ({"window": 4}, "attends to 4 places"),
        ({"taps": (1, 3, 6)}, r"after blocks \[1, 3, 6\]"),
    ],
)
def test_heads_that_readers_of_the_flat_layout_compute_differently_are_refused(
    base: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    smash(config_of(base, publish(random_head(**changes), tmp_path / "public", "speculators")))
    written = {"model": str(tmp_path / "out"), "output": str(tmp_path / "written")}
    with pytest.raises(ExportError, match=message):
        export(ExportConfig(**written, to="eagle3"))
    assert not (tmp_path / "written").exists()
    export(ExportConfig(**written, to="speculators"))
    assert (tmp_path / "written" / "model.safetensors").is_file()


def test_a_config_that_says_something_else_is_refused_by_field(base: Path, tmp_path: Path) -> None:
    smash(config_of(base, publish(random_head(), tmp_path / "public")))
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "drafter": "eagle9"}))
    with pytest.raises(ModelError, match=r"drafter"):
        open_decoder(str(tmp_path / "out"))
