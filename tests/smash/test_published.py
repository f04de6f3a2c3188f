"""The published checkpoint's layout, in a synthetic file with small sizes."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from helpers.agree import assert_close_logits
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.checkpoint import open_decoder, save_checkpoint
from lightstride.commands.smash import smash
from lightstride.config import SmashRunConfig
from lightstride.errors import ModelError
from lightstride.generate import Settings, generate
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.published import open_published, our_name

HIDDEN, STEPS, LAYERS = 64, 4, 3


def tiny_base(seed: int = 0) -> PreTrainedModel:
    return tiny_llama(hidden_size=HIDDEN, num_layers=4, seed=seed)


class Merger(nn.Module):
    """The published names of the merger's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HIDDEN)
        self.k_proj = nn.Linear(HIDDEN + HIDDEN // 2, HIDDEN)
        self.v_proj = nn.Linear(HIDDEN + HIDDEN // 2, HIDDEN)
        self.pos = nn.Parameter(torch.randn(STEPS, HIDDEN // 2))


class Published(nn.Module):
    """A module whose state dict has the published layout."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_base(seed=7)
        self.comp_embedder = nn.Module()
        self.comp_embedder.embedding = self.model.get_input_embeddings()
        self.comp_embedder.merger = Merger()
        self.comp_embedder.out_proj = nn.Linear(HIDDEN, HIDDEN)
        self.micro_step_decoder = nn.Module()
        self.micro_step_decoder.decoders = nn.ModuleList(
            LlamaDecoderLayer(self.model.config, index) for index in range(LAYERS)
        )
        self.micro_step_decoder.stop_head = nn.Sequential(
            nn.Linear(HIDDEN, HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, 1),
        )
        with torch.no_grad():
            for parameter in self.micro_step_decoder.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.fixture
def published(tmp_path: Path) -> tuple[Published, Path]:
    module = Published()
    path = tmp_path / "published.safetensors"
    save_file({name: tensor.clone() for name, tensor in module.state_dict().items()}, path)
    return module, path


@torch.no_grad()
def test_the_published_modules_compute_the_same_here(published: tuple[Published, Path]) -> None:
    module, path = published
    model = open_published(path, tiny_base(seed=1))
    ids = torch.randint(0, 256, (1, 6))
    assert_close_logits(model(ids).logits, module.model(ids).logits)

    embeddings_nD = model.embed(ids[0, :3])
    merger = module.comp_embedder.merger
    mean = embeddings_nD.mean(0)
    placed = torch.cat([embeddings_nD, merger.pos[:3]], dim=-1)
    shape = (-1, 64, HIDDEN // 64)
    scores = torch.einsum(
        "hd,nhd->hn", merger.q_proj(mean).view(shape)[0], merger.k_proj(placed).view(shape)
    )
    mixed = torch.einsum(
        "hn,nhd->hd", (scores / shape[2] ** 0.5).softmax(-1), merger.v_proj(placed).view(shape)
    )
    expected = mean + module.comp_embedder.out_proj(mixed.flatten())
    found = model.merge(ids[:, :4], torch.tensor([3]))[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    inputs = torch.randn(2, 4 + STEPS - 1, HIDDEN)
    hidden = inputs
    angles = module.model.model.rotary_emb(inputs, torch.arange(inputs.shape[1])[None])
    mask = torch.ones(1, 1, inputs.shape[1], inputs.shape[1]).bool().tril()
    for layer in module.micro_step_decoder.decoders:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=angles)
    outputs, _ = model.micro(inputs, None)
    torch.testing.assert_close(outputs, hidden, atol=1e-5, rtol=1e-5)
    stops = module.micro_step_decoder.stop_head(hidden)[..., 0]
    torch.testing.assert_close(model.stop_logits(outputs), stops, atol=1e-5, rtol=1e-5)
    assert model.config.taps == [1, 2, 3, 4]
    assert (model.config.max_segment, model.config.micro_layers) == (STEPS, LAYERS)


def test_it_answers_and_can_be_saved(published: tuple[Published, Path], tmp_path: Path) -> None:
    model = open_published(published[1], tiny_base())
    settings = Settings(max_new_tokens=12, confidence=0.3)
    answer = generate(SmashDecoder(model, byte_tokenizer()), [[72, 101]], settings)[0]
    assert len(answer.tokens) == 12
    model.save_pretrained(tmp_path / "smashed")
    again = type(model).from_pretrained(tmp_path / "smashed", base=model.base)
    assert generate(SmashDecoder(again, byte_tokenizer()), [[72, 101]], settings)[0].tokens == (
        answer.tokens
    )


def test_published_names_are_mapped() -> None:
    assert our_name("micro_step_decoder.decoders.2.post_attention_layernorm.weight") == (
        "micro.layers.2.ffn_norm.weight"
    )
    assert our_name("comp_embedder.merger.pos") == "embedder.positions"
    assert our_name("micro_step_decoder.stop_head.4.bias") == "stop.4.bias"


def test_a_pickle_is_not_read_but_can_be_converted(
    published: tuple[Published, Path], tmp_path: Path
) -> None:
    path = tmp_path / "theirs.ckpt"
    torch.save({"state_dict": published[0].state_dict()}, path)
    with pytest.raises(ModelError, match="convert it: python -c ") as refused:
        open_published(path, tiny_base())
    command = str(refused.value).split("convert it: ")[1]
    arguments = shlex.split(command)[1:]
    subprocess.run([sys.executable, *arguments], check=True)
    assert open_published(path.with_suffix(".safetensors"), tiny_base()).config.micro_layers


def test_other_files_are_refused(published: tuple[Published, Path], tmp_path: Path) -> None:
    module, path = published
    with pytest.raises(ModelError, match="nothing"):
        open_published(tmp_path / "nothing.safetensors", tiny_base())
    (tmp_path / "text.safetensors").write_text("no checkpoint")
    with pytest.raises(ModelError, match="text"):
        open_published(tmp_path / "text.safetensors", tiny_base())
    save_file({"weights": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="lack"):
        open_published(tmp_path / "other.safetensors", tiny_base())
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    save_file({**state, "surprise": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(ModelError, match="surprise"):
        open_published(tmp_path / "more.safetensors", tiny_base())
    with pytest.raises(ModelError, match="another size"):
        open_published(path, tiny_llama(hidden_size=128, num_layers=4))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="published"):
        open_published(path, tiny_base())


def test_the_command_writes_a_checkpoint_that_answers(
    published: tuple[Published, Path], tmp_path: Path
) -> None:
    save_checkpoint(tiny_base(), byte_tokenizer(), tmp_path / "base")
    config = SmashRunConfig(
        model=str(tmp_path / "base"),
        output=str(tmp_path / "out"),
        from_head=str(published[1]),
        device="cpu",
        dtype="float32",
    )
    assert smash(config)["numbers"]["max_segment"] == STEPS
    settings = Settings(max_new_tokens=12, confidence=0.3)
    shutil.rmtree(tmp_path / "base")  # the fine-tuned base lies in the checkpoint
    answers = generate(open_decoder(str(tmp_path / "out")), [[72, 101]], settings)
    expected = SmashDecoder(open_published(published[1], tiny_base()), byte_tokenizer())
    assert answers[0].tokens == generate(expected, [[72, 101]], settings)[0].tokens
