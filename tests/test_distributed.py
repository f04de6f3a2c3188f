"""Two and three processes give the bits that one gives."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.healing import WINDOWS
from helpers.healing import cut as cut_toy
from helpers.processes import run_ranks
from helpers.toys import tiny_llama
from lightstride import distributed
from lightstride.distributed import (
    TreeSum,
    broadcast_object,
    broadcast_tensor,
    gather_objects,
    owned_shards,
    pieces,
    tree_nodes,
)
from lightstride.errors import ConfigError
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.source import Resident
from lightstride.models.shapes import AttentionShape, FFNShape, Shape, Site
from lightstride.prune.cut.statistics import SiteStatistics, stream_blocks
from lightstride.prune.cut.supernet import build_supernet
from lightstride.recover.loop import Recovery, Rows, recover


def worker(folder: Path) -> None:
    """What every rank does: statistics, a supernet; rank 0 writes down what it saw."""
    distributed.init()
    rank, num_ranks = distributed.rank(), distributed.world_size()
    model = tiny_llama(bias=True)
    adapter = adapter_for(model.config)
    tokens = torch.randint(256, (11, 16), generator=torch.Generator().manual_seed(0))
    cut = {"attention": AttentionShape(1, 2), "ffn": FFNShape(20)}
    geometry = adapter.geometry(model.config)
    centre: dict[Site, Shape] = {site: cut[site.kind] for site in geometry.sites}
    shapes = {site: [centre[site], geometry.shape(site)] for site in geometry.sites}
    seen: dict[Site, SiteStatistics] = {}
    stream_blocks(Resident(model), tokens, seen.__setitem__, batch_size=2)
    net = build_supernet(Resident(model), tokens, shapes, centre, folder / "net", batch_size=2)
    everyone = gather_objects([distributed.rank(), len(net.entries), len(seen)])
    assert everyone == [[i, 4, 0 if i else 4] for i in range(num_ranks)], everyone
    if rank == 0:
        grams = {str(site): statistics.gram for site, statistics in seen.items()}
        save_file(grams, folder / "grams.safetensors")
    distributed.close()


def files_of(num_ranks: int, folder: Path) -> dict[str, bytes]:
    """What so many processes write."""
    folder.mkdir()
    run_ranks(worker, num_ranks, folder)
    return {p.name: p.read_bytes() for p in sorted(folder.glob("**/*")) if p.is_file()}


@pytest.mark.timeout(400)
def test_statistics_and_supernet_do_not_depend_on_ranks(tmp_path: Path) -> None:
    alone, *others = [files_of(num_ranks, tmp_path / str(num_ranks)) for num_ranks in (1, 2, 3)]
    assert len(alone) == 4 + 2
    assert others == [alone, alone]


def values(num_shards: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num_shards)
    return [torch.randn(50, generator=generator) * 10**shard for shard in range(num_shards)]


def as_ranks(num_ranks: int, num_shards: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The total when so many ranks share the shards, played in one process."""
    ranks = pieces(range(num_shards), num_ranks)
    messages: list[Tensor] = []
    for rank in range(1, num_ranks):
        tree = TreeSum(num_shards)
        for shard in ranks[rank]:
            tree.add(shard, values(num_shards)[shard])
        assert [(level, index) for level, index, _ in tree.pending] == tree_nodes(ranks[rank])
        messages += [tensor for _, _, tensor in tree.pending]
    main = TreeSum(num_shards)
    for shard in ranks[0]:
        main.add(shard, values(num_shards)[shard])
    monkeypatch.setattr(distributed, "world_size", lambda: num_ranks)
    monkeypatch.setattr(distributed.dist, "recv", lambda into, _: into.copy_(messages.pop(0)))
    total = main.total()
    monkeypatch.undo()
    assert total is not None
    assert messages == []
    return total


@pytest.mark.parametrize("num_shards", [1, 2, 3, 5, 8, 13])
def test_sum_has_the_same_bits_for_any_number_of_ranks(
    num_shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = as_ranks(1, num_shards, monkeypatch)
    exact = sum(value.double() for value in values(num_shards))
    torch.testing.assert_close(alone.double(), exact, rtol=1e-5, atol=1e-5)
    for num_ranks in range(2, num_shards + 1):
        assert torch.equal(as_ranks(num_ranks, num_shards, monkeypatch), alone)


def test_few_parts_wait_at_once() -> None:
    tree = TreeSum(64)
    for shard in range(64):
        tree.add(shard, torch.ones(1))
        assert len(tree.pending) <= 6
    total = tree.total()
    assert total is not None
    assert total == 64


def test_pieces_cover_the_range_evenly() -> None:
    assert pieces(range(3, 13), 4) == [range(3, 6), range(6, 9), range(9, 11), range(11, 13)]
    assert pieces(range(2), 3) == [range(1), range(1, 2), range(2, 2)]


def test_one_process_needs_no_group() -> None:
    distributed.init()
    distributed.barrier()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert broadcast_object((1, "a", None)) == [1, "a", None]
    assert gather_objects({"a": 0.1}) == [{"a": 0.1}]
    assert broadcast_tensor(torch.ones(2)).tolist() == [1, 1]
    assert owned_shards(8) == range(8)
    distributed.close()


def test_more_ranks_than_shards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 9)
    with pytest.raises(ConfigError, match="9 processes for 8 shards"):
        owned_shards(8)


def learner(folder: Path) -> None:
    """What every rank does: a recovery from a teacher in memory, and from one that is read block
    by block; rank 0 writes the weights.
    """
    distributed.init()
    dense = tiny_llama()
    recovery = Recovery(passes=2, learning_rate=3e-3, step_tokens=96)
    rows = Rows.alike(WINDOWS)
    for name, teacher in (("memory", dense), ("blocks", Resident(dense))):
        smaller = cut_toy(dense)
        recover(smaller, teacher, adapter_for(dense.config), rows, recovery, folder / name)
        if distributed.rank() == 0:
            weights = {name: tensor.clone() for name, tensor in smaller.state_dict().items()}
            save_file(weights, folder / f"{name}.safetensors")
    distributed.close()


@pytest.mark.timeout(400)
def test_a_recovery_by_two_processes_is_that_of_one(tmp_path: Path) -> None:
    found = []
    for num_ranks in (1, 2):
        folder = tmp_path / str(num_ranks)
        folder.mkdir()
        run_ranks(learner, num_ranks, folder)
        found += [load_file(folder / f"{name}.safetensors") for name in ("memory", "blocks")]
    one, *others = found
    for name, tensor in one.items():
        for other in others:
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-4)
