"""Forwards that round alike, however many columns they have.

In bfloat16 an answer depends on how many columns were read at once: sums in another order choose
another token at near ties.  But on a CPU a product's row does not depend on how many others there
are, if there are any (a lone one is summed by another kernel), and norms depend on none.  Attention
does, by the tails of its loops: it sums otherwise where queries are not a multiple of 4, or entries
of 16.  So here all are filled up: with a second column, with queries that are dropped, and with
entries that nobody sees, whose weight is 0.  Places must be the same too: a column's branch has to
stand behind the row's entries without a gap, as it does when it is read alone.

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
QUERIES = 4
LEAST_COLUMNS = 2
SEEN = 150
"""Entries, more or less, that attention is looked at with."""
WIDTH = 304
"""Entries that are there, a multiple of ENTRIES."""
NUM_COLUMNS = (2, 3, 4, 5, 8, 13, 16, 33, 48)
"""Columns of the products that are looked at."""
ALL_COLUMNS = 96
"""Columns that are multiplied so many at a time: another order of sums shows in one of some ten
thousand results in bfloat16."""


def filled_up(number: int, step: int) -> int:
    """The least multiple of a step that is no less."""
    return -(-number // step) * step


def fill_queries(values: Tensor) -> Tensor:
    """Queries or their masks, (B, G, R, any), with rows of zeros up to a multiple."""
    rows = values.shape[2]
    return nn.functional.pad(values, (0, 0, 0, filled_up(rows, QUERIES) - rows))


def attend_alike(
    query_BGRd: Tensor, key_BGWd: Tensor, value_BGWd: Tensor, mask_B1RW: Tensor, scale: float
) -> Tensor:
    """Attention of query rows, as many as the mask has without those that fill it up."""
    output = nn.functional.scaled_dot_product_attention(
        fill_queries(query_BGRd),
        key_BGWd,
        value_BGWd,
        attn_mask=mask_B1RW,
        scale=scale,
        enable_gqa=query_BGRd.shape[1] != key_BGWd.shape[1],
    )
    return output[:, :, : query_BGRd.shape[2]]


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
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    by_shape = {tuple(layer.weight.shape): layer for layer in layers}
    generator = torch.Generator().manual_seed(0)
    with packed_layers(model):
        for (_, width), layer in by_shape.items():
            inputs = torch.randn(1, ALL_COLUMNS, width, generator=generator)
            inputs_1QI = inputs.to(device=model.device, dtype=model.dtype)
            wide_1QO = layer(inputs_1QI)
            for count in NUM_COLUMNS:
                stop = ALL_COLUMNS // count * count
                parts = [layer(each) for each in inputs_1QI[:, :stop].split(count, dim=1)]
                if not torch.equal(torch.cat(parts, dim=1), wide_1QO[:, :stop]):
                    return False
    return True


def attention_is_alike(model: PreTrainedModel) -> bool:
    """Whether each query row of attention is the same bits for all numbers of rows and of entries
    that nobody sees."""
    geometry = adapter_for(model.config).geometry(model.config)
    generator = torch.Generator().manual_seed(0)

    def drawn(*sizes: int) -> Tensor:
        values = torch.randn(*sizes, geometry.head_dim, generator=generator)
        return values.to(device=model.device, dtype=model.dtype)

    for kv_heads in sorted({shape.num_kv_heads for shape in geometry.attention} - {0}):
        query_1GRd = drawn(1, kv_heads, ALL_COLUMNS)
        key_1GWd, value_1GWd = drawn(1, kv_heads, WIDTH), drawn(1, kv_heads, WIDTH)
        for seen in (SEEN - 1, SEEN + ENTRIES + 3):
            full = filled_up(seen, ENTRIES)
            mask_11RW = query_1GRd.new_zeros(1, 1, ALL_COLUMNS, WIDTH)
            mask_11RW[..., seen:] = -torch.inf
            wide = attend_alike(query_1GRd, key_1GWd, value_1GWd, mask_11RW, 0.1)
            key, value = key_1GWd[:, :, :full], value_1GWd[:, :, :full]
            for count in NUM_COLUMNS:
                parts = [
                    attend_alike(query, key, value, fill_queries(mask), 0.1)
                    for query, mask in zip(
                        query_1GRd.split(count, dim=2),
                        mask_11RW[..., :full].split(count, dim=2),
                        strict=True,
                    )
                ]
                if not torch.equal(torch.cat(parts, dim=2), wide):
                    return False
    return True
