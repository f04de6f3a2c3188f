"""Weights as a CPU's matrix kernel reads them: packed once, not again in every product.

A step of decoding multiplies few columns with every weight.  From rows as they are stored torch's
kernel reads at 7 GB/s where a packed copy is read at 12 to 17 (bfloat16, one thread of a Zen 4:
16,384 x 576 in 2.2 and 1.3 ms for one column, 3.5 and 2.1 for 16).  A copy of what is multiplied is
what it costs, so it is made only where it fits easily, and only for the layers' own forward during
ours: whoever calls the model otherwise, or trains it, has the layers as they are.

    with packed_layers(model):          # nothing happens where packing does not pay
        model(...)

Layers that read the same - queries, keys and values; gate and up - are one product: 30 layers of
SmolLM2-135M take 11.4 ms for one column instead of 13.6, and 14.6 for 16 instead of 16.8 (bfloat16,
two threads of a Zen 4).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, nn

MOST_OF_FREE_MEMORY = 0.25
"""Share of the memory that is free which the copies may take."""

TOGETHER = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
    ("gate", "up"),
)
"""Layers of a module that are given the same columns."""

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PackedLinear:
    """The copy of one layer's weight, and by what it is known to be one still."""

    forward: Linear
    address: int
    version: int

    def is_of(self, weight: Tensor) -> bool:
        """Whether the weight is the one that was copied, unchanged."""
        return weight.data_ptr() == self.address and weight._version == self.version


PACKED: WeakKeyDictionary[nn.Module, dict[nn.Linear, PackedLinear]] = WeakKeyDictionary()
"""By model; an empty mapping where packing does not pay."""
WEIGHTS: WeakKeyDictionary[nn.Module, PackedLinear] = WeakKeyDictionary()
"""By owner: copies of weights that are no layer's."""


@contextmanager
def packed_layers(model: nn.Module) -> Iterator[None]:
    """Inside this context the model's linear layers multiply by packed copies of their weights."""
    layers = copies_of(model)
    for layer, packed in layers.items():
        layer.__dict__["forward"] = packed.forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


def copies_of(model: nn.Module) -> Mapping[nn.Linear, PackedLinear]:
    """The packed copies of a model, made where there are none or where a weight has changed."""
    if model not in PACKED:
        layers = packable(model)
        is_small = fits_easily(sum(layer.weight.nbytes for layer in layers))
        PACKED[model] = pack_all(model, layers) if is_small else {}
    known = PACKED[model]
    for layer, packed in known.items():
        weight = layer._parameters["weight"]
        assert weight is not None
        if not packed.is_of(weight):
            PACKED[model] = pack_all(model, [*known])
            break
    return PACKED[model]


def pack_all(model: nn.Module, layers: Sequence[nn.Linear]) -> dict[nn.Linear, PackedLinear]:
    """Packed copies of these layers' weights, one of those that are given the same columns."""
    packed: dict[nn.Linear, PackedLinear] = {}
    for group in groups_among(model, layers):
        packed |= zip(group, SharedProduct(group).parts(), strict=True)
    return packed | {layer: pack_layer(layer) for layer in layers if layer not in packed}


def groups_among(model: nn.Module, layers: Sequence[nn.Linear]) -> Iterator[list[nn.Linear]]:
    """Of these layers, those that are given the same columns and have no bias."""
    usable = {layer for layer in layers if layer.bias is None}
    for module in model.modules():
        for names in TOGETHER:
            group = [layer for name in names if (layer := module._modules.get(name)) in usable]
            if len(group) == len(names) and len({layer.in_features for layer in group}) == 1:
                yield group


class SharedProduct:
    """Layers that are given the same columns: whichever is asked first computes for all."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.layers = layers
        together = torch.cat([layer.weight.detach() for layer in layers])
        self.product = product_by(together, lambda: None)
        self.widths = [layer.out_features for layer in layers]
        self.inputs: Tensor | None = None
        self.outputs: dict[int, Tensor] = {}
        """What was computed of these inputs and not asked for yet, by place."""

    def parts(self) -> list[PackedLinear]:
        """Each layer's own share."""
        return [
            PackedLinear(partial(self.part, place), layer.weight.data_ptr(), layer.weight._version)
            for place, layer in enumerate(self.layers)
        ]

    def part(self, place: int, inputs: Tensor) -> Tensor:
        """The product of one of the layers."""
        if inputs is not self.inputs or place not in self.outputs:
            self.inputs = inputs
            self.outputs = dict(enumerate(self.product(inputs).split(self.widths, dim=-1)))
        output = self.outputs.pop(place)
        if not self.outputs:
            self.inputs = None
        return output


def packed_product(owner: nn.Module, weight_OI: Tensor, bias_O: Tensor | None) -> Linear:
    """What multiplies with a weight that no layer has, by a packed copy where that pays.

    The copy is kept for as long as its owner, who has one such weight.
    """
    known = WEIGHTS.get(owner)
    if known is not None and known.is_of(weight_OI):
        return known.forward
    if not has_kernel(weight_OI) or not fits_easily(weight_OI.nbytes):
        return partial(nn.functional.linear, weight=weight_OI, bias=bias_O)
    WEIGHTS[owner] = pack(weight_OI, lambda: bias_O)
    return WEIGHTS[owner].forward


def packable(model: nn.Module) -> list[nn.Linear]:
    """The linear layers for which the machine has a kernel of this kind."""
    return [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear and "forward" not in layer.__dict__ and has_kernel(layer.weight)
    ]


def has_kernel(weight: Tensor) -> bool:
    """Whether the machine has a kernel that reads such a weight packed."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and not weight.is_inference()
        and torch.backends.mkldnn.is_available()
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def fits_easily(num_bytes: int) -> bool:
    """Whether copies of so many bytes leave enough of the memory that is free."""
    return num_bytes <= MOST_OF_FREE_MEMORY * int(psutil.virtual_memory().available)


def product_by(weight: Tensor, bias: Callable[[], Tensor | None]) -> Linear:
    """What multiplies by a packed copy of a weight."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1)
    multiply = torch.ops.mkldnn._linear_pointwise

    def forward(inputs: Tensor) -> Tensor:
        product = multiply(inputs, packed, bias(), "none", [], "")
        assert isinstance(product, Tensor)
        return product

    return forward


def pack(weight: Tensor, bias: Callable[[], Tensor | None]) -> PackedLinear:
    """A packed copy of a weight."""
    return PackedLinear(product_by(weight, bias), weight.data_ptr(), weight._version)


def pack_layer(layer: nn.Linear) -> PackedLinear:
    """A packed copy of a layer's weight."""
    return pack(layer.weight, lambda: layer._parameters["bias"])
