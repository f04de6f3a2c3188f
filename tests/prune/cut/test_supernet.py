"""A supernet is the same however it is built; what is read is what was written, or an error."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from helpers.toys import tiny_llama
from lightstride.errors import OutputError, WorkError
from lightstride.models.families.adapter import OUTPUT_NAME
from lightstride.models.families.registry import adapter_for
from lightstride.models.fingerprint import model_hash
from lightstride.models.opening.source import Resident
from lightstride.models.opening.streamed import open_streamed
from lightstride.models.shapes import AttentionShape, FFNShape, Geometry, Shape, Site, keep_all
from lightstride.prune.cut import supernet as supernet_module
from lightstride.prune.cut.materialize import mask, masked_weights
from lightstride.prune.cut.refit import CutSite, prune_site
from lightstride.prune.cut.statistics import SiteStatistics, stream_blocks
from lightstride.prune.cut.supernet import Accumulation, Supernet, build_supernet

ATTENTION = (AttentionShape(1, 1), AttentionShape(2, 1), AttentionShape(2, 2))
FFN = (FFNShape(12), FFNShape(24), FFNShape(36), FFNShape(48))


def tokens(seed: int = 7) -> Tensor:
    return torch.randint(256, (6, 16), generator=torch.Generator().manual_seed(seed))


def space(model: PreTrainedModel) -> dict[Site, Sequence[Shape]]:
    sites = adapter_for(model.config).geometry(model.config).sites
    return {site: ATTENTION if site.kind == "attention" else FFN for site in sites}


def build(
    model: PreTrainedModel,
    folder: Path,
    *,
    accumulation: Accumulation = "median",
    correction: float = 0.0,
    windows: Tensor | None = None,
) -> Supernet:
    shapes = space(model)
    return build_supernet(
        Resident(model),
        tokens() if windows is None else windows,
        shapes,
        {site: some[1] for site, some in shapes.items()},
        folder,
        accumulation=accumulation,
        weigh_tokens=correction != 0,
        correction=correction,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def plain_levels(model: PreTrainedModel, accumulation: Accumulation) -> dict[Site, list[CutSite]]:
    """All levels by the definition: after each site the model so far is masked and run anew."""
    adapter = adapter_for(model.config)
    geometry = adapter.geometry(model.config)
    stand_ins: dict[Site, CutSite] = {}
    levels: dict[Site, list[CutSite]] = {}
    for site, shapes in space(model).items():
        seen: dict[Site, SiteStatistics] = {}
        masked = Resident(mask(model, adapter, stand_ins))
        stream_blocks(masked, tokens(), seen.__setitem__)
        weight = seen[site].weights[OUTPUT_NAME[site.kind]]
        dense = geometry.shape(site)
        levels[site] = prune_site(weight, seen[site].gram, shapes, dense)
        if accumulation == "median":
            stand_ins[site] = levels[site][1]
        if accumulation == "expectation":
            stand_ins[site] = average(levels[site], geometry, dense)
    return levels


def average(levels: list[CutSite], geometry: Geometry, dense: Shape) -> CutSite:
    name = OUTPUT_NAME["ffn" if isinstance(dense, FFNShape) else "attention"]
    like = {name: torch.zeros(geometry.hidden_size, levels[-1].output_OK.shape[1])}
    sizes = [geometry.parameters(level.kept.shape) for level in levels]
    parts = [masked_weights(like, level, dense, geometry.head_dim)[name] for level in levels]
    total = sum(size * part for size, part in zip(sizes, parts, strict=True)) / sum(sizes)
    assert isinstance(total, Tensor)
    return CutSite(keep_all(dense), total, 0.0)


def test_correction_aims_at_the_dense_stream(tmp_path: Path) -> None:
    model = tiny_llama()
    adapter = adapter_for(model.config)
    shapes = space(model)
    far = []
    for correction in (0.0, 0.5):
        supernet = build(model, tmp_path / str(correction), correction=correction)
        read_all(supernet)
        for site, some in shapes.items():
            assert torch.equal(supernet.load(site, some[-1]).output_OK, supernet.dense[site])
        levels = {site: supernet.load(site, some[1]) for site, some in shapes.items()}
        far.append(distance(mask(model, adapter, levels), model))
    assert far[1] < far[0]


def distance(one: PreTrainedModel, other: PreTrainedModel) -> float:
    """How far the last hidden states of two models are apart."""
    with torch.no_grad():
        states = [model.model(input_ids=tokens()).last_hidden_state for model in (one, other)]
    return float((states[0] - states[1]).norm() / states[1].norm())


@pytest.mark.parametrize("accumulation", ["none", "median", "expectation"])
def test_levels_are_those_of_the_definition(tmp_path: Path, accumulation: Accumulation) -> None:
    model = tiny_llama()
    supernet = build(model, tmp_path / "net", accumulation=accumulation)
    for site, levels in plain_levels(model, accumulation).items():
        assert supernet.shapes(site) == tuple(level.kept.shape for level in levels)
        for level in levels:
            loaded = supernet.load(site, level.kept.shape)
            assert loaded.kept == level.kept == supernet.kept(site, level.kept.shape)
            assert supernet.loss(site, level.kept.shape) == pytest.approx(level.loss, rel=0.02)
            error = (loaded.output_OK - level.output_OK).norm() / level.output_OK.norm()
            assert error < 0.01


def test_accumulation_matters(tmp_path: Path) -> None:
    model = tiny_llama()
    site = Site(1, "ffn")
    losses = {
        build(model, tmp_path / name, accumulation=name).loss(site, FFN[0])
        for name in ("none", "median", "expectation")
    }
    assert len(losses) == 3


def test_dense_levels_take_no_space_and_are_exact(tmp_path: Path) -> None:
    model = tiny_llama()
    supernet = build(model, tmp_path / "net")
    for site, dense in supernet.dense.items():
        shape = supernet.shapes(site)[-1]
        assert supernet.loss(site, shape) == 0
        assert torch.equal(supernet.load(site, shape).output_OK, dense)
    stored = sum(path.stat().st_size for path in (tmp_path / "net").glob("*.safetensors"))
    columns = 2 * (12 + 24 + 36) + 2 * 8 * (1 + 2)
    assert stored < columns * 32 * 2 + 4 * 2000


def test_killed_build_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama(num_layers=3)
    accumulation: Accumulation
    for accumulation, correction in (("median", 0.5), ("expectation", 0.0), ("none", 0.0)):
        options = {"accumulation": accumulation, "correction": correction}
        whole = build(model, tmp_path / accumulation, **options)
        folder = tmp_path / f"{accumulation}-resumed"
        for stop in (1, 2, 2):
            killed_after(stop, monkeypatch)
            with pytest.raises(KeyboardInterrupt):
                build(model, folder, **options)
            monkeypatch.undo()
            assert not folder.exists()
        build(model, folder, **options)
        assert contents(folder) == contents(whole.folder)


def killed_after(num_sites: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next build stops when it has written so many sites, in the middle of the next file."""
    write_site = supernet_module.write_site
    count = 0

    def write(folder: Path, site: Site, levels: Sequence[CutSite], *rest: Tensor | None) -> object:
        nonlocal count
        if count == num_sites:
            (folder / f".{site}.safetensors.1").write_bytes(b"half")
            raise KeyboardInterrupt
        count += 1
        return write_site(folder, site, levels, *rest)

    monkeypatch.setattr(supernet_module, "write_site", write)


def test_finished_supernet_is_only_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    build(model, tmp_path / "net")
    monkeypatch.setattr(supernet_module, "stream_blocks", None)
    assert build(model, tmp_path / "net").shapes(Site(0, "ffn")) == FFN


def test_flipped_bits_are_found_and_named(tmp_path: Path) -> None:
    model = tiny_llama()
    folder = build(model, tmp_path / "net").folder
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        for position in range(0, len(good), max(1, len(good) // 40)):
            bad = bytearray(good)
            bad[position] ^= 1 << position % 8
            path.write_bytes(bad)
            with pytest.raises(WorkError, match=path.name):
                read_all(Supernet.open(folder, Resident(model)))
        path.write_bytes(good[:-2])
        with pytest.raises(WorkError, match=path.name):
            read_all(Supernet.open(folder, Resident(model)))
        path.write_bytes(good)
    read_all(Supernet.open(folder, Resident(model)))


def read_all(supernet: Supernet) -> None:
    for site in supernet.entries:
        for shape in supernet.shapes(site):
            supernet.load(site, shape)


def test_other_models_runs_and_versions_are_refused(tmp_path: Path) -> None:
    model, other = tiny_llama(), tiny_llama(seed=1)
    folder = build(model, tmp_path / "net").folder
    with pytest.raises(WorkError, match="another model"):
        Supernet.open(folder, Resident(other))
    with pytest.raises(WorkError, match="its tokens differ"):
        build(model, folder, windows=tokens(seed=8))
    with pytest.raises(WorkError, match="its accumulation differ"):
        build(model, folder, accumulation="none")
    index = folder / "index.json"
    index.write_text(index.read_text().replace('"version": 2', '"version": 9'))
    with pytest.raises(WorkError, match="version 9"):
        Supernet.open(folder, Resident(model))
    with pytest.raises(WorkError, match="no supernet"):
        Supernet.open(tmp_path, Resident(model))


def test_unfinished_work_of_another_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    killed_after(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        build(model, tmp_path / "net")
    monkeypatch.undo()
    with pytest.raises(WorkError, match="its accumulation differ"):
        build(model, tmp_path / "net", accumulation="none")


def test_full_folder_and_unwritable_place_are_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        build(model, tmp_path)
    with pytest.raises(OutputError, match="cannot write"):
        build(model, tmp_path / "notes.txt" / "net")


def test_fingerprint_is_of_the_model_not_its_type() -> None:
    marks = [model_hash(tiny_llama()), model_hash(tiny_llama().bfloat16())]
    assert marks[0] == marks[1]
    changed = tiny_llama()
    with torch.no_grad():
        changed.model.layers[0].mlp.up_proj.weight.mul_(1.01)
    configured = tiny_llama()
    configured.config.rms_norm_eps *= 2
    assert len({marks[0], model_hash(changed), model_hash(configured)}) == 3


def test_stream_goes_on_with_weights_as_stored(tmp_path: Path) -> None:
    model = tiny_llama()
    supernet = build(model, tmp_path / "net")
    shapes = space(model)
    centre: Mapping[Site, CutSite] = {s: supernet.load(s, some[1]) for s, some in shapes.items()}
    adapter = adapter_for(model.config)
    geometry = adapter.geometry(model.config)
    before = {site: level for site, level in centre.items() if site < Site(1, "ffn")}
    seen: dict[Site, SiteStatistics] = {}
    stream_blocks(Resident(model), tokens(), seen.__setitem__, finished=before)
    site = Site(1, "ffn")
    assert list(seen) == [site]
    weight = seen[site].weights["down"]
    [level] = prune_site(weight, seen[site].gram, [FFN[1]], geometry.shape(site))
    torch.testing.assert_close(  # other widths are solved beside it, so a last bit may differ
        level.output_OK.bfloat16().float(), centre[site].output_OK, rtol=2**-7, atol=1e-6
    )


@pytest.mark.parametrize("spilled", [False, True])
def test_weights_from_shards_give_the_same_files(tmp_path: Path, spilled: bool) -> None:
    model = tiny_llama(num_layers=3)
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    source = open_streamed(str(tmp_path / "model"), dtype=torch.float32)
    shapes = space(model)
    supernet = build_supernet(
        source,
        tokens(),
        shapes,
        {site: some[1] for site, some in shapes.items()},
        tmp_path / "net",
        correction=0.5,
        spill=tmp_path / "activations" if spilled else None,
    )
    expected = build(model, tmp_path / "resident", correction=0.5)
    assert contents(supernet.folder) == contents(expected.folder)
    for site, some in shapes.items():
        assert torch.equal(supernet.load(site, some[-1]).output_OK, expected.dense[site])
