"""Sites, shapes and kept units: order, text forms, counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightstride.models.shapes import (
    AttentionKept,
    AttentionShape,
    FFNKept,
    FFNShape,
    Geometry,
    Kept,
    Shape,
    Site,
    keep_all,
    kept_json,
    parse_kept,
    parse_shape,
    shape_text,
)

SHAPES = st.one_of(
    st.builds(FFNShape, st.integers(1, 4096)),
    st.builds(AttentionShape, st.integers(1, 64), st.integers(1, 16)),
)


@st.composite
def kepts(draw: st.DrawFn) -> Kept:
    """Kept units of some dense site."""
    units = st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True)
    if draw(st.booleans()):
        return FFNKept(tuple(sorted(draw(units))))
    groups = sorted(draw(units))
    width = draw(st.integers(1, 5))
    queries = st.lists(st.integers(0, 9), min_size=width, max_size=width, unique=True)
    return AttentionKept(tuple(groups), tuple(tuple(sorted(draw(queries))) for _ in groups))


def test_sites_sort_in_the_order_they_are_computed():
    sites = [Site(1, "ffn"), Site(0, "ffn"), Site(10, "attention"), Site(1, "attention")]
    assert [str(site) for site in sorted(sites)] == [
        "0.ffn",
        "1.attention",
        "1.ffn",
        "10.attention",
    ]


def test_site_text_goes_both_ways():
    for site in (Site(0, "attention"), Site(12, "ffn")):
        assert Site.parse(str(site)) == site
    for text in ("", "3", "x.ffn", "3.mlp", "3.ffn.1"):
        with pytest.raises(ValueError):
            Site.parse(text)


@given(SHAPES)
def test_shape_text_goes_both_ways(shape: Shape):
    assert parse_shape(shape_text(shape)) == shape


@given(kepts())
def test_kept_units_go_both_ways(kept: Kept):
    assert parse_kept(kept_json(kept)) == kept


@given(SHAPES)
def test_keeping_all_keeps_the_shape(shape: Shape):
    assert keep_all(shape).shape == shape


def test_heads_are_counted_group_by_group():
    kept = AttentionKept((0, 2), ((1,), (0,)))
    assert kept.shape == AttentionShape(2, 1)
    assert kept.heads(queries_per_group=3) == (1, 6)
    assert keep_all(AttentionShape(2, 3)).heads(3) == tuple(range(6))


def test_parameters_add_up():
    geometry = Geometry(
        family="toy",
        hidden_size=10,
        head_dim=4,
        vocab_size=7,
        tied_head=False,
        attention=(AttentionShape(2, 3), AttentionShape(1, 3)),
        ffn=(FFNShape(5), FFNShape(8)),
        query_head_parameters=84,
        kv_head_parameters=88,
        channel_parameters=32,
        attention_fixed=10,
        ffn_fixed=3,
    )
    assert geometry.num_blocks == 2
    assert [str(site) for site in geometry.sites] == [
        "0.attention",
        "0.ffn",
        "1.attention",
        "1.ffn",
    ]
    assert geometry.shape(Site(1, "ffn")) == FFNShape(8)
    by_hand = (6 * 84 + 2 * 88 + 10) + (5 * 32 + 3) + (3 * 84 + 88 + 10) + (8 * 32 + 3)
    assert geometry.prunable_parameters == by_hand
