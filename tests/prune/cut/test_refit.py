"""Sites cut and refitted, against least squares and brute force."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.layers import HEAD, brute_loss, gram, layer
from lightstride.errors import ConfigError
from lightstride.models.shapes import (
    AttentionKept,
    AttentionShape,
    FFNKept,
    FFNShape,
    Shape,
    keep_all,
)
from lightstride.prune.cut import refit as refit_module
from lightstride.prune.cut.choose_units import num_cuts
from lightstride.prune.cut.refit import (
    CutSite,
    add_ridge,
    kept_inputs,
    prune_attention,
    prune_ffn,
    prune_site,
    refit,
    solve_upper,
    weights_for_targets,
)


def all_cuts(shape: AttentionShape, dense: AttentionShape) -> Iterator[AttentionKept]:
    """Every way to cut a dense attention to a shape."""
    some = list(itertools.combinations(range(dense.queries_per_group), shape.queries_per_group))
    for groups in itertools.combinations(range(dense.num_kv_heads), shape.num_kv_heads):
        for queries in itertools.product(some, repeat=shape.num_kv_heads):
            yield AttentionKept(groups, queries)


def padded(level: CutSite, dense: Shape, num_inputs: int, head_dim: int = HEAD) -> Tensor:
    """The level's weights with zeros where it lost inputs."""
    full_OI = torch.zeros(len(level.output_OK), num_inputs)
    full_OI[:, kept_inputs(level.kept, dense, head_dim)] = level.output_OK
    return full_OI


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", ["ffn", "attention"])
def test_fp32_solves_find_what_fp64_finds(
    kind: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense: Shape = FFNShape(144) if kind == "ffn" else AttentionShape(6, 6)
    shapes = {
        "ffn": [FFNShape(width) for width in (24, 72, 120)],
        "attention": [AttentionShape(3, 6), AttentionShape(6, 2)],
    }[kind]
    weight_OI, inputs_NI = layer(40, 144, tokens=100)
    inputs_NI += 10 * torch.randn(100, 1, generator=torch.Generator().manual_seed(1))

    def cut() -> list[CutSite]:
        return prune_site(weight_OI, gram(inputs_NI), shapes, dense)

    if fails:
        made = refit_module.cholesky_in_place

        def only_wide(gram_II: Tensor, *, upper: bool = False) -> Tensor:
            if gram_II.dtype == torch.float32:
                raise ConfigError("not positive")
            return made(gram_II, upper=upper)

        monkeypatch.setattr(refit_module, "cholesky_in_place", only_wide)
    found = cut()
    monkeypatch.setattr(refit_module, "ENOUGH_DAMPING", math.inf)
    for narrow, wide in zip(found, cut(), strict=True):
        assert narrow.kept == wide.kept
        assert narrow.loss == pytest.approx(wide.loss, rel=1e-3)
        torch.testing.assert_close(narrow.output_OK, wide.output_OK, rtol=1e-2, atol=1e-2)


def test_refit_is_least_squares() -> None:
    weight_OI, inputs_NI = layer(5, 12)
    kept_K = torch.tensor([0, 3, 4, 9])
    expected = torch.linalg.lstsq(inputs_NI[:, kept_K], inputs_NI @ weight_OI.T).solution.T
    fitted = refit(weight_OI, gram(inputs_NI), kept_K).float()
    torch.testing.assert_close(fitted, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_ffn_levels_have_their_widths_nest_and_are_least_squares(chunk: int) -> None:
    weight_OC, inputs_NC = layer(10, 24)
    widths = [24, 7, 16, 8, 1]
    levels = prune_ffn(weight_OC, gram(inputs_NC), [FFNShape(w) for w in widths], chunk=chunk)
    assert [len(level.kept.channels) for level in levels if isinstance(level.kept, FFNKept)] == (
        widths
    )
    kept = [set(kept_inputs(level.kept, FFNShape(24), 0).tolist()) for level in levels]
    assert kept[4] < kept[1] < kept[3] < kept[2] < kept[0]
    damped_CC, _ = add_ridge(gram(inputs_NC), 0.01)
    for level in levels[1:]:
        columns = kept_inputs(level.kept, FFNShape(24), 0)
        expected = refit(weight_OC, damped_CC, columns).float()
        torch.testing.assert_close(level.output_OK, expected, rtol=1e-4, atol=1e-4)
        error_NO = inputs_NC @ (padded(level, FFNShape(24), 24) - weight_OC).T
        assert level.loss == pytest.approx(float(error_NO.square().sum()) / 2, rel=1e-3)
    assert levels[0].loss == 0
    assert torch.equal(levels[0].output_OK, weight_OC)


def test_ffn_chunk_hardly_changes_the_loss() -> None:
    weight_OC, inputs_NC = layer(16, 64, tokens=1000)
    one, many = (
        prune_ffn(weight_OC, gram(inputs_NC), [FFNShape(32)], chunk=chunk)[0].loss
        for chunk in (1, 8)
    )
    worst = prune_ffn(weight_OC.flip(1), gram(inputs_NC), [FFNShape(32)])[0]
    random = brute_loss(weight_OC, inputs_NC, list(range(32)), 0.01)
    assert one <= many * 1.02 < random
    assert worst.loss > 0


@pytest.mark.parametrize("tokens", [400, 10])
def test_attention_takes_the_best_of_all_cuts(tokens: int) -> None:
    dense = AttentionShape(3, 2)
    weight_OI, inputs_NI = layer(8, dense.num_heads * HEAD, tokens=tokens)
    for shape in (AttentionShape(2, 2), AttentionShape(3, 1), AttentionShape(1, 1)):
        level = prune_attention(weight_OI, gram(inputs_NI), [shape], dense)[0]
        losses = {
            kept: brute_loss(weight_OI, inputs_NI, kept_inputs(kept, dense, HEAD).tolist(), 0.01)
            for kept in all_cuts(shape, dense)
        }
        assert len(losses) == num_cuts(shape, dense)
        assert level.kept == min(losses, key=losses.__getitem__)
        columns = kept_inputs(level.kept, dense, HEAD)
        expected = refit(weight_OI, add_ridge(gram(inputs_NI), 0.01)[0], columns).float()
        torch.testing.assert_close(level.output_OK, expected, rtol=1e-4, atol=1e-4)
        error_NO = inputs_NI @ (padded(level, dense, dense.num_heads * HEAD) - weight_OI).T
        assert level.loss == pytest.approx(float(error_NO.square().sum()) / 2, rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_cuts_come_close_to_the_best(seed: int) -> None:
    dense = AttentionShape(4, 3)
    shapes = [
        AttentionShape(g, r) for g, r in itertools.product(range(1, 5), range(1, 4)) if g * r < 12
    ]
    weight_OI, inputs_NI = layer(16, dense.num_heads * HEAD, seed=seed)
    matrix = gram(inputs_NI)
    greedy = prune_attention(weight_OI, matrix, shapes, dense, damping=1e-6, exhaustive=0)
    best = prune_attention(weight_OI, matrix, shapes, dense, damping=1e-6, exhaustive=10_000)
    assert [level.kept.shape for level in greedy] == shapes
    for one, other in zip(greedy, best, strict=True):
        assert other.loss * 0.999 <= one.loss <= other.loss * 1.35
    mean = sum(one.loss / other.loss for one, other in zip(greedy, best, strict=True))
    assert mean / len(shapes) < 1.1


def test_dead_channels_go_first_and_keep_their_weights() -> None:
    weight_OC, inputs_NC = layer(6, 12)
    inputs_NC[:, [2, 7, 8]] = 0
    weight_OC[:, 2] = 1e6
    levels = prune_ffn(weight_OC, gram(inputs_NC), [FFNShape(9), FFNShape(11)])
    assert levels[0].kept == FFNKept((0, 1, 3, 4, 5, 6, 9, 10, 11))
    assert levels[0].loss == pytest.approx(0, abs=1e-6)
    weights_OC = padded(levels[1], FFNShape(12), 12)
    torch.testing.assert_close(
        weights_OC[:, list(levels[0].kept.channels)], weight_OC[:, [0, 1, 3, 4, 5, 6, 9, 10, 11]]
    )


def test_all_channels_dead() -> None:
    level = prune_ffn(torch.ones(3, 6), torch.zeros(6, 6), [FFNShape(2)])[0]
    assert level.loss == 0
    assert torch.equal(level.output_OK, torch.ones(3, 2))


def test_fewer_tokens_than_channels() -> None:
    weight_OC, inputs_NC = layer(6, 32, tokens=10)
    level = prune_ffn(weight_OC, gram(inputs_NC), [FFNShape(16)])[0]
    assert torch.isfinite(level.output_OK).all()
    dense_power = float((inputs_NC @ weight_OC.T).square().sum()) / 2
    assert level.loss < 0.01 * dense_power


def test_damping_draws_weights_to_the_dense_ones() -> None:
    weight_OC, inputs_NC = layer(6, 16)
    shape = [FFNShape(8)]
    levels = [prune_ffn(weight_OC, gram(inputs_NC), shape, damping=d)[0] for d in (0.001, 1e6)]
    columns = kept_inputs(levels[1].kept, FFNShape(16), 0)
    torch.testing.assert_close(levels[1].output_OK, weight_OC[:, columns], rtol=1e-3, atol=1e-3)
    assert levels[0].loss < levels[1].loss


@pytest.mark.parametrize("kind", ["ffn", "attention"])
def test_prune_site_knows_the_kind(kind: str) -> None:
    dense = FFNShape(16) if kind == "ffn" else AttentionShape(2, 2)
    shape = FFNShape(8) if kind == "ffn" else AttentionShape(1, 2)
    weight_OI, inputs_NI = layer(6, 16)
    levels = prune_site(weight_OI, gram(inputs_NI), [shape, dense], dense)
    assert [level.kept.shape for level in levels] == [shape, dense]
    assert levels[1].kept == keep_all(dense)


def test_retargeted_weights_fit_other_targets() -> None:
    weight_OI, inputs_NI = layer(5, 12)
    targets_NO = torch.tanh(inputs_NI @ weight_OI.T) + 0.1
    cross_IO = inputs_NI.T @ targets_NO
    fitted = weights_for_targets(weight_OI, gram(inputs_NI), cross_IO, damping=1e-9)
    expected = torch.linalg.lstsq(inputs_NI, targets_NO).solution.T
    torch.testing.assert_close(fitted, expected, rtol=1e-3, atol=1e-3)
    level = prune_ffn(fitted, gram(inputs_NI), [FFNShape(6)], damping=1e-9)[0]
    columns = kept_inputs(level.kept, FFNShape(12), 0)
    cut = torch.linalg.lstsq(inputs_NI[:, columns], targets_NO).solution.T
    torch.testing.assert_close(level.output_OK, cut, rtol=1e-3, atol=1e-3)


def test_retargeted_to_its_own_outputs_is_unchanged() -> None:
    weight_OI, inputs_NI = layer(5, 12)
    same = weights_for_targets(
        weight_OI, gram(inputs_NI), gram(inputs_NI) @ weight_OI.T, damping=0.1
    )
    torch.testing.assert_close(same, weight_OI, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(1e-3, 1e3),
    widths=st.lists(st.integers(1, 20), min_size=1, max_size=4, unique=True),
    chunk=st.integers(1, 7),
)
def test_ffn_does_not_depend_on_the_scale(
    seed: int, scale: float, widths: list[int], chunk: int
) -> None:
    weight_OC, inputs_NC = layer(8, 20, seed=seed, tokens=100)
    shapes = [FFNShape(width) for width in widths]
    scale = 2.0 ** round(math.log2(scale))
    plain = prune_ffn(weight_OC, gram(inputs_NC), shapes, chunk=chunk)
    scaled = prune_ffn(weight_OC, gram(inputs_NC) * scale, shapes, chunk=chunk)
    for one, other in zip(plain, scaled, strict=True):
        assert one.kept == other.kept
        torch.testing.assert_close(one.output_OK, other.output_OK, rtol=1e-4, atol=1e-4)
        assert one.loss * scale == pytest.approx(other.loss, rel=1e-4, abs=1e-6)
    by_width = sorted(plain, key=lambda level: level.output_OK.shape[1])
    assert all(a.loss >= b.loss * 0.9 - 1e-6 for a, b in itertools.pairwise(by_width))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    groups=st.integers(1, 4),
    queries=st.integers(1, 3),
    exhaustive=st.sampled_from([0, 10, 1000]),
)
def test_attention_has_every_shape_of_the_lattice(
    seed: int, groups: int, queries: int, exhaustive: int
) -> None:
    dense = AttentionShape(groups, queries)
    lattice = itertools.product(range(1, groups + 1), range(1, queries + 1))
    shapes = [AttentionShape(g, r) for g, r in lattice]
    weight_OI, inputs_NI = layer(6, dense.num_heads * HEAD, seed=seed, tokens=60)
    levels = prune_attention(weight_OI, gram(inputs_NI), shapes, dense, exhaustive=exhaustive)
    for shape, level in zip(shapes, levels, strict=True):
        assert level.kept.shape == shape
        assert level.output_OK.shape == (6, shape.num_heads * HEAD)


@pytest.mark.parametrize("size", [1, 7, 16, 30])
def test_solves_a_triangle_block_by_block(size: int) -> None:
    torch.manual_seed(size)
    whole = torch.randn(30, 30, dtype=torch.float64).triu() + 6 * torch.eye(30, dtype=torch.float64)
    values = torch.randn(size, 5, dtype=torch.float64)
    part = whole[:size, :size]
    expected = torch.linalg.solve_triangular(part, values, upper=True)
    assert torch.allclose(solve_upper(part, values, block=7), expected)
