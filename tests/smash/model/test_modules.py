"""The grafts' modules against their formulas, a segment and a step at a time."""

import pytest
import torch

from helpers.smash_toys import toy
from helpers.toys import tiny_llama
from lightstride.smash.model.modules import Embedder, MicroDecoder, rotary_angles, rotate, stop_head

K, D = 4, 16


def embedder() -> Embedder:
    module = Embedder(hidden_size=D, num_heads=4, max_segment=K)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.5)
    return module


def merged_slowly(module: Embedder, embeddings_nD: torch.Tensor) -> torch.Tensor:
    """The paper's formula for one segment, head by head."""
    count = len(embeddings_nD)
    if count == 1:
        return embeddings_nD[0]
    mean = embeddings_nD.mean(0)
    placed = torch.cat([embeddings_nD, module.positions[:count]], dim=-1)
    query = module.query(mean).view(module.num_heads, -1)
    key = module.key(placed).view(count, module.num_heads, -1)
    value = module.value(placed).view(count, module.num_heads, -1)
    heads = []
    for head in range(module.num_heads):
        scores = key[:, head] @ query[head] / query.shape[-1] ** 0.5
        heads.append(scores.softmax(0) @ value[:, head])
    return mean + module.output(torch.cat(heads))


def test_a_batched_merge_is_the_formula_segment_by_segment() -> None:
    module = embedder()
    lengths_N = torch.tensor([1, 2, 3, 4, 2, 1])
    embeddings_NKD = torch.randn(6, K, D)
    merged_ND = module(embeddings_NKD, lengths_N)
    for merged, embeddings, length in zip(merged_ND, embeddings_NKD, lengths_N, strict=True):
        torch.testing.assert_close(merged, merged_slowly(module, embeddings[:length]))


def test_what_is_behind_a_segment_does_not_matter_and_order_does() -> None:
    module = embedder()
    embeddings = torch.randn(1, K, D)
    junk = torch.cat([embeddings[:, :2], torch.full((1, K - 2, D), 1e6)], dim=1)
    two = torch.tensor([2])
    torch.testing.assert_close(module(embeddings, two), module(junk, two), rtol=0, atol=0)
    swapped = embeddings[:, [1, 0, 2, 3]]
    assert (module(embeddings, two) - module(swapped, two)).abs().max() > 1e-3


def test_a_segment_of_one_is_unchanged_and_a_new_embedder_answers_the_mean() -> None:
    embeddings = torch.randn(2, K, D)
    assert torch.equal(embedder()(embeddings, torch.tensor([1, 1])), embeddings[:, 0])
    fresh = Embedder(hidden_size=D, num_heads=4, max_segment=K)
    expected = torch.stack([embeddings[0, :3].mean(0), embeddings[1].mean(0)])
    torch.testing.assert_close(fresh(embeddings, torch.tensor([3, 4])), expected)


def micro(num_layers: int = 2) -> MicroDecoder:
    return MicroDecoder(
        hidden_size=D,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        num_channels=24,
        num_slots=9,
        rope={"rope_type": "default", "rope_theta": 100.0},
        epsilon=1e-5,
    )


def test_micro_decoding_with_a_cache_is_the_whole_at_once() -> None:
    module = micro()
    inputs_NSD = torch.randn(3, 8, D)
    whole, _ = module(inputs_NSD, None)
    outputs, cache = module(inputs_NSD[:, :5], None)
    pieces = [outputs]
    for slot in range(5, 8):
        output, cache = module(inputs_NSD[:, slot : slot + 1], cache)
        pieces.append(output)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


def test_the_micro_decoder_is_causal_and_sees_places() -> None:
    module = micro()
    inputs = torch.randn(1, 6, D, requires_grad=True)
    outputs, _ = module(inputs, None)
    (gradient,) = torch.autograd.grad(outputs[0, 3].sum(), inputs)
    assert gradient[0, 4:].abs().max() == 0
    assert (gradient[0, :4].abs().amax(-1) > 0).all()
    moved, _ = module(inputs[:, [1, 0, 2, 3, 4, 5]], None)
    assert (moved[0, 5] - outputs[0, 5]).abs().max() > 1e-4


def test_rotary_angles_are_those_of_llama() -> None:
    model = tiny_llama()
    positions = torch.arange(7)[None]
    states = torch.randn(1, 2, 7, 8)
    cosine, sine = model.model.rotary_emb(states, positions)
    angles = rotary_angles(7, 8, model.config.rope_parameters)
    torch.testing.assert_close(angles[0], cosine[0])
    torch.testing.assert_close(angles[1], sine[0])
    half = torch.cat([-states[..., 4:], states[..., :4]], dim=-1)
    torch.testing.assert_close(rotate(states, angles), states * cosine + half * sine)


@pytest.mark.parametrize(("kind", "count"), [("linear", D + 1), ("mlp", 2 * (D * D + D) + D + 1)])
def test_stop_heads_have_the_sizes_they_say(kind: str, count: int) -> None:
    head = stop_head(kind, D)
    assert sum(parameter.numel() for parameter in head.parameters()) == count
    assert head(torch.randn(3, D)).shape == (3, 1)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_outputs_of_the_last_slots_alone_are_the_same(num_layers: int) -> None:
    model = toy(num_layers=num_layers)
    inputs = torch.randn(3, 6, 32)
    whole, _ = model.micro(inputs, None)
    for count in (1, 4):
        some, cache = model.micro(inputs, None, count)
        torch.testing.assert_close(some, whole[:, -count:], atol=1e-5, rtol=1e-5)
        assert cache[0][0].shape[2] == 6
