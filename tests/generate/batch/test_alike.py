"""Forwards that round alike: wide ones are those of one column, to the last bit, or refused."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from helpers.agree import assert_close_logits
from helpers.toys import tiny_llama, tiny_qwen3
from lightstride.errors import ConfigError
from lightstride.generate import PlainDecoder, Settings, generate
from lightstride.generate.batch import alike
from lightstride.generate.batch.alike import (
    attend_alike,
    check_alike,
    fill_queries,
    filled_entries,
    filled_up,
)
from lightstride.generate.batch.forward import CachedBatch

TOKENS = [7, 30, 4, 90, 12, 55, 1, 8, 200, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40]


def logits_of(model: PreTrainedModel, prompt: list[int], sizes: list[int]) -> torch.Tensor:
    """Logits of the tokens, read so many at a time behind a prompt."""
    batch = CachedBatch(model, "static")
    batch.rounds_alike = True
    batch.add_row()
    batch.reserve(len(prompt) + len(TOKENS) + 1, 1)
    found, start = [], 0
    with torch.inference_mode():
        batch.read(slice(0, 1), [prompt], [])
        for size in sizes:
            forward = batch.forward(
                slice(0, 1),
                tokens_BQ=torch.tensor([TOKENS[start : start + size]]),
                depths_BQ=torch.arange(size)[None],
                logit_columns=range(size),
            )
            batch.keep(slice(0, 1), [list(range(size))], [size])
            found.append(forward.logits.of_row(0, range(size)))
            start += size
    return torch.cat(found)


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen3])
@pytest.mark.parametrize("size", [1, 14])
def test_filled_up_forwards_are_the_same_to_rounding(make, size: int) -> None:
    model = make()
    one_by_one = logits_of(model, TOKENS[:size], [1] * len(TOKENS))
    together = logits_of(model, TOKENS[:size], [5, 1, 9, 4])
    assert_close_logits(one_by_one, together)
    full = model(torch.tensor([[*TOKENS[:size], *TOKENS]])).logits[0, size:]
    assert_close_logits(one_by_one, full)


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen3])
def test_in_bfloat16_they_are_the_same_bits(make) -> None:
    model = make().bfloat16()
    try:
        check_alike(model)
    except ConfigError as refused:
        pytest.skip(str(refused))
    one_by_one = logits_of(model, TOKENS[:14], [1] * len(TOKENS))
    for sizes in ([19], [5, 1, 9, 4], [2] * 9 + [1]):
        assert torch.equal(one_by_one, logits_of(model, TOKENS[:14], sizes))


def test_prompts_of_hundreds_of_tokens_are_read_alike_in_pieces_and_among_others() -> None:
    model = tiny_llama(
        num_layers=4, hidden_size=192, head_dim=64, num_kv_heads=3, queries_per_group=2
    ).bfloat16()
    try:
        check_alike(model)
    except ConfigError as refused:
        pytest.skip(str(refused))
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, 200, (n,), generator=generator).tolist() for n in (237, 40, 600)]

    def read(rows: list[list[int]], piece: int) -> CachedBatch:
        batch = CachedBatch(model, "dynamic")
        batch.rounds_alike = True
        for _ in rows:
            batch.add_row()
        batch.reserve(max(map(len, rows)) + 8, len(rows))
        for start in range(0, max(map(len, rows)), piece):
            batch.read(slice(0, len(rows)), [row[start : start + piece] for row in rows], [])
        return batch

    with torch.inference_mode():
        together = read(prompts, 1000)
        for index, prompt in enumerate(prompts):
            for alone in (read([prompt], 1000), read([prompt], 32)):
                for one, other in zip(alone.cache.buffers, together.cache.buffers, strict=True):
                    assert torch.equal(one[0, :, : len(prompt)], other[index, :, : len(prompt)])


def test_what_fills_up_is_not_seen() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, 6, 8), torch.randn(2, 3, 16, 8), torch.randn(2, 3, 16, 8)
    mask = torch.zeros(1, 1, 6, 16)
    mask[..., 11:] = -torch.inf
    found = attend_alike(query, key, value, fill_queries(mask), 0.3)
    wanted = nn.functional.scaled_dot_product_attention(
        query, key[:, :, :11], value[:, :, :11], scale=0.3
    )
    assert torch.allclose(found, wanted, atol=1e-6)
    assert [filled_up(n, 4) for n in (0, 1, 4, 5)] == [0, 4, 4, 8]


def blocks_of(entries: int) -> list[range]:
    """What sdpa sums together, as far as is known: 512 at a time, of these 192, the rest halved."""
    found, start = [], 0
    while start < entries:
        left = min(512, entries - start)
        sizes = [192] * max(0, left // 192 - 1)
        rest = left - sum(sizes)
        sizes += [rest] if rest <= 192 else [-(-rest // 2), rest // 2]
        for size in sizes:
            found.append(range(start, start + size))
            start += size
    return found


def test_entries_are_summed_with_the_same_ones_however_many_there_are() -> None:
    assert [len(each) for each in blocks_of(512 + 208)] == [192, 160, 160, 104, 104]
    sizes = sorted({filled_entries(seen) for seen in range(1, 1500)})
    assert sizes[10:14] == [176, 192, 384, 512]
    for seen in range(1, 1024):
        own = filled_entries(seen)
        together = [seen_of(each, seen) for each in blocks_of(own) if each.start < seen]
        for size in sizes[sizes.index(own) :]:
            assert together == [
                seen_of(each, seen) for each in blocks_of(size) if each.start < seen
            ]


def seen_of(block: range, seen: int) -> range:
    """The entries of a block that are seen."""
    return range(block.start, min(block.stop, seen))


def test_attention_that_depends_on_the_number_of_entries_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def odd(query, key, value, mask, scale):
        return attend_alike(query, key, value, mask, scale) * (1 + 1e-3 * (key.shape[2] > 600))

    model = tiny_llama()
    monkeypatch.setattr(alike, "products_are_alike", lambda _: True)
    monkeypatch.setattr(alike, "attend_alike", odd)
    with pytest.raises(ConfigError, match="exact cannot be promised"):
        check_alike(model)


def test_attention_that_depends_on_the_number_of_rows_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def odd(query, key, value, mask, scale):
        return attend_alike(query, key, value, mask, scale) * (1 + 1e-3 * (query.shape[2] > 7))

    monkeypatch.setattr(alike, "attend_alike", odd)
    monkeypatch.setattr(alike, "products_are_alike", lambda _: True)
    with pytest.raises(ConfigError, match="exact cannot be promised"):
        check_alike(tiny_llama())


def test_products_that_depend_on_the_number_of_columns_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Odd(nn.Linear):
        """Rounds otherwise for many columns."""

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs) * (1 + 1e-3 * (inputs.shape[1] > 7))

    model = tiny_llama()
    model.model.layers[0].mlp.up_proj = Odd(*model.model.layers[0].mlp.up_proj.weight.T.shape)
    assert not alike.products_are_alike(model)
    with pytest.raises(ConfigError, match="exact cannot be promised"):
        generate(PlainDecoder(model, None), [[1, 2]], Settings(exact=True, max_new_tokens=2))
