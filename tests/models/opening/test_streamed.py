"""Weights read when their turn comes: the same model, never whole in memory, and clear refusals."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from helpers.toys import TINY, tiny_llama
from lightstride.errors import ModelError
from lightstride.models.block_calls import logits_at, recorders
from lightstride.models.fingerprint import model_hash
from lightstride.models.opening.load import load_model
from lightstride.models.opening.source import Resident, WeightSource
from lightstride.models.opening.streamed import Streamed, open_streamed

TOKENS_BL = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(0))


def saved(model: PreTrainedModel, folder: Path, *, shard: str = "20KB") -> str:
    model.save_pretrained(folder, max_shard_size=shard)
    return str(folder)


def logits(source: WeightSource) -> torch.Tensor:
    """Logits of all positions, block by block."""
    model, adapter = source.model, source.adapter
    with torch.no_grad():
        with source.embedding(), recorders(model, adapter) as stand_ins:
            adapter.decoder(model)(TOKENS_BL, use_cache=False)
        hidden = stand_ins[0].hidden_BLD
        with source.blocks() as blocks:
            for block, stand_in in zip(blocks, stand_ins, strict=True):
                hidden = block(hidden, *stand_in.call.args, **stand_in.call.kwargs)
        with source.head():
            positions = torch.arange(TOKENS_BL.shape[1])
            return torch.cat(list(logits_at(model, adapter, TOKENS_BL, hidden, positions, 100)))


def is_empty(source: Streamed) -> bool:
    return all(parameter.is_meta for parameter in source.model.parameters())


@pytest.mark.parametrize("name", TINY)
def test_every_family_computes_the_same_bits(name: str, tmp_path: Path) -> None:
    folder = saved(TINY[name](), tmp_path / "m")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    model = load_model(folder)
    source = open_streamed(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = model(TOKENS_BL).logits
    assert torch.equal(logits(source), expected)
    assert torch.equal(logits(Resident(model)), expected)
    assert source.identity() == Resident(model).identity() == model_hash(model)
    assert is_empty(source)
    assert source.shapes == Resident(model).shapes
    for site, weight in Resident(model).dense_outputs().items():
        assert torch.equal(source.dense_outputs()[site], weight)


@pytest.mark.parametrize("tied", [True, False])
def test_one_block_is_there_at_a_time(tied: bool, tmp_path: Path) -> None:
    folder = saved(tiny_llama(num_layers=4, tied=tied), tmp_path / "m")
    source = open_streamed(folder, dtype=torch.bfloat16)
    with source.blocks() as blocks:
        for index, block in enumerate(blocks):
            there = {n for n, p in source.model.named_parameters() if not p.is_meta}
            assert there == {f"model.layers.{index}.{n}" for n, _ in block.named_parameters()}
            assert {p.dtype for p in block.parameters()} == {torch.bfloat16}
    assert is_empty(source)
    with source.blocks() as blocks:
        next(blocks)
    assert is_empty(source)


@pytest.mark.parametrize("name", TINY)
def test_blocks_are_called_alike_without_embedding_and_head(name: str, tmp_path: Path) -> None:
    source = open_streamed(saved(TINY[name](), tmp_path / "m"), dtype=torch.float32)
    model, adapter = source.model, source.adapter
    ends = {id(end) for end in (model.get_input_embeddings(), model.get_output_embeddings())}
    calls = []
    for context in (source.embedding, source.outside_blocks):
        with torch.no_grad(), context(), recorders(model, adapter) as stand_ins:
            adapter.decoder(model)(TOKENS_BL, use_cache=False)
            is_there = [not s.module._parameters[s.own_name].is_meta for s in source.slots]
        calls.append([stand_in.call for stand_in in stand_ins])
    at_ends = [
        there for there, s in zip(is_there, source.slots, strict=True) if id(s.module) in ends
    ]
    assert not any(at_ends)
    assert is_empty(source)
    for one, other in zip(*calls, strict=True):
        assert one.kwargs.keys() == other.kwargs.keys()
        tensors = [
            (value, other.kwargs[key])
            for key, value in one.kwargs.items()
            if isinstance(value, torch.Tensor)
        ]
        assert all(torch.equal(*pair) for pair in tensors)


def test_a_shard_that_goes_or_shrinks_is_one_line(tmp_path: Path) -> None:
    folder = saved(tiny_llama(num_layers=4), tmp_path / "m")
    source = open_streamed(folder, dtype=torch.float32)
    place = source.shards.places["model.layers.2.mlp.up_proj.weight"].path
    whole = place.read_bytes()
    place.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"truncated: it had .* put it back, and go on"):
        logits(source)
    place.unlink()
    with pytest.raises(ModelError, match=r"cannot read .*put it back, and go on"):
        logits(source)
    place.write_bytes(whole)
    assert logits(source).isfinite().all()


def test_what_is_wrong_is_found_before_anything_runs(tmp_path: Path) -> None:
    model = tiny_llama()
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folder = tmp_path / "m"

    def opened(changes: dict[str, torch.Tensor | None], name: str) -> Streamed:
        tensors = {n: t for n, t in {**whole, **changes}.items() if t is not None}
        model.save_pretrained(folder / name, state_dict=tensors)
        return open_streamed(str(folder / name), dtype=torch.float32)

    key = "model.layers.1.mlp.down_proj.weight"
    with pytest.raises(ModelError, match="lacks the weights"):
        opened({key: None}, "missing")
    with pytest.raises(ModelError, match="in other sizes"):
        opened({key: torch.zeros(32, 40)}, "narrow")
    with pytest.raises(ModelError, match="has no place for"):
        opened({"model.layers.1.mlp.more.weight": torch.zeros(2)}, "more")
    with pytest.raises(ModelError, match=f"NaN or infinite weights, first in {key}"):
        logits(opened({key: torch.full((32, 48), float("nan"))}, "nan"))


def test_names_without_the_models_prefix_are_found(tmp_path: Path) -> None:
    model = tiny_llama(tied=True)
    bare = {name.removeprefix("model."): t for name, t in model.state_dict().items()}
    del bare["lm_head.weight"]
    model.save_pretrained(tmp_path / "m", state_dict=bare)
    source = open_streamed(str(tmp_path / "m"), dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(logits(source), model(TOKENS_BL).logits)
