"""Forwards that round alike, however many columns they have.

In bfloat16 an answer depends on how many columns were read at once: sums in another order choose
another token at near ties.  But on a CPU a product's row does not depend on how many others there
are, if there are any (a lone one is summed by another kernel), and norms depend on none.  Attention
does, in two ways:

* by the tails of its loops: it sums otherwise where queries are not a multiple of 4, or entries of
  16.  So both are filled up: with queries that are dropped, and with entries that nobody sees,
  whose weight is 0;
* by the blocks of its sums: 512 entries are taken at a time, of these a block of 192, and what is
  left in halves.  192 + 160 + 160 of 512, then, but 104 + 104 of 208: an entry is summed with
  others.  So more than a block is filled up to two whole ones, or to 512 where a third has begun,
  and any entry has the same neighbors in all numbers of entries that there are.

So a lone column gets a second one, and entries are filled up.  Places must be the same too: a
column's branch has to stand behind the row's entries without a gap, as it does when it is read
alone.

Whether this is so for a model on a machine is looked at, not believed (`check_alike`).

Shapes: B rows, G KV heads, R query rows of a KV head, Q columns, W entries, I inputs of a layer, d
size of a head.
"""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightstride.errors import ConfigError
from lightstride.generate.batch.packed import packed_layers
from lightstride.models.families.registry import adapter_for

ENTRIES = 16
SUM_BLOCK = 192
"""Entries that are summed together at most."""
SUM_STRETCH = 512
"""Entries that attention takes at a time: a block, and the rest of them in halves."""
QUERIES = 4
LEAST_COLUMNS = 2
NUM_COLUMNS = (2, 3, 4, 5, 8, 13, 16, 33, 48, 97, 200, 512)
"""Columns of the products that are looked at: another order of sums shows in one of some ten
thousand results in bfloat16."""
HEAD_COLUMNS = 256
"""Most columns of the head's product, which is the dearest."""
COMPARED = 96
"""Columns that are looked at by so many at a time, or by more at once."""
SEEN = (5, 90, 187, 240, 352, 353, 500, 513, 705, 800)
"""Entries that attention is looked at with."""
WIDTHS = (16, 192, 384, 512, 704, 896, 1024)
"""Entries that are there."""
NUM_QUERIES = (4, 6, 12, 47, 96, 200)
ROWS = 4
"""Rows of them."""


def filled_up(number: int, step: int) -> int:
    """The least multiple of a step that is no less."""
    return -(-number // step) * step


def filled_entries(number: int) -> int:
    """Entries that attention reads of so many: each is summed in the same block for any more."""
    stretches, rest = divmod(number, SUM_STRETCH)
    if rest <= SUM_BLOCK:
        full = filled_up(rest, ENTRIES)
    else:
        full = 2 * SUM_BLOCK if rest <= SUM_BLOCK + (SUM_STRETCH - SUM_BLOCK) // 2 else SUM_STRETCH
    return stretches * SUM_STRETCH + full


def fill_queries(values: Tensor) -> Tensor:
    """Queries or their masks, (B, G, R, any), with rows of zeros up to a multiple."""
    rows = values.shape[2]
    return nn.functional.pad(values, (0, 0, 0, filled_up(rows, QUERIES) - rows))


def attend_alike(
    query_BGRd: Tensor, key_BGWd: Tensor, value_BGWd: Tensor, mask_B1RW: Tensor, scale: float
) -> Tensor:
    """Attention of query rows, as many as the mask has without those that fill it up."""
    output_BGRd = nn.functional.scaled_dot_product_attention(
        fill_queries(query_BGRd),
        key_BGWd,
        value_BGWd,
        attn_mask=mask_B1RW,
        scale=scale,
        enable_gqa=query_BGRd.shape[1] != key_BGWd.shape[1],
    )
    return output_BGRd[:, :, : query_BGRd.shape[2]]


ALIKE: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
"""By model: whether it rounds alike here."""


def check_alike(model: PreTrainedModel, *, is_full: bool = True) -> None:
    """Refuse, with ConfigError, a model whose products or attention depend on the number of columns
    here, and attention that is not sdpa's over a full cache."""
    if not is_full:
        raise ConfigError(
            "exact is for the full cache and sdpa attention: leave out --kv and --kv-dtype"
        )
    if model not in ALIKE:
        with torch.inference_mode():
            ALIKE[model] = products_are_alike(model) and attention_is_alike(model)
    if not ALIKE[model]:
        raise ConfigError(
            f"exact cannot be promised: here {model.dtype} rounds by the number of columns."
            " Leave it out; in float32 near ties, where that matters, are rare"
        )


def products_are_alike(model: PreTrainedModel) -> bool:
    """Whether the rows of each layer's product are the same bits for all numbers of rows."""
    head = model.get_output_embeddings()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    by_shape = {tuple(layer.weight.shape): layer for layer in layers}
    generator = torch.Generator().manual_seed(0)
    with packed_layers(model):
        for (_, width), layer in by_shape.items():
            most = HEAD_COLUMNS if layer is head else max(NUM_COLUMNS)
            inputs = torch.randn(1, most, width, generator=generator)
            inputs_1QI = inputs.to(device=model.device, dtype=model.dtype)
            wide_1QO = layer(inputs_1QI)
            for count in NUM_COLUMNS:
                stop = min(most, max(count, COMPARED)) // count * count
                parts = [layer(each) for each in inputs_1QI[:, :stop].split(count, dim=1)]
                if stop and not torch.equal(torch.cat(parts, dim=1), wide_1QO[:, :stop]):
                    return False
    return True


def attention_is_alike(model: PreTrainedModel) -> bool:
    """Whether each query row of attention is the same bits for all numbers of rows and of entries
    that nobody sees."""
    geometry = adapter_for(model.config).geometry(model.config)
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int, kv_heads: int) -> Tensor:
        values = torch.randn(ROWS, kv_heads, rows, geometry.head_dim, generator=generator)
        return values.to(device=model.device, dtype=model.dtype)

    for kv_heads in sorted({shape.num_kv_heads for shape in geometry.attention} - {0}):
        query_BGRd = drawn(max(NUM_QUERIES), kv_heads)
        key_BGWd, value_BGWd = drawn(max(WIDTHS), kv_heads), drawn(max(WIDTHS), kv_heads)
        for seen in SEEN:
            own = filled_entries(seen)
            whole = attend_seen(query_BGRd, key_BGWd, value_BGWd, seen, own, max(NUM_QUERIES))
            others = [(width, max(NUM_QUERIES)) for width in WIDTHS if width > own]
            for width, count in [*others, *((own, count) for count in NUM_QUERIES)]:
                found = attend_seen(query_BGRd, key_BGWd, value_BGWd, seen, width, count)
                if not torch.equal(found, whole):
                    return False
    return True


def attend_seen(
    query_BGRd: Tensor, key_BGWd: Tensor, value_BGWd: Tensor, seen: int, width: int, count: int
) -> Tensor:
    """Attention of query rows, so many at a time, to the first `seen` of some entries."""
    parts = []
    for part_BGRd in query_BGRd.split(count, dim=2):
        mask_11RW = part_BGRd.new_zeros(1, 1, part_BGRd.shape[2], width)
        mask_11RW[..., seen:] = -torch.inf
        key, value = key_BGWd[:, :, :width], value_BGWd[:, :, :width]
        parts.append(attend_alike(part_BGRd, key, value, fill_queries(mask_11RW), 0.1))
    return torch.cat(parts, dim=2)
