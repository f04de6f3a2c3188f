"""Weights as a CPU's matrix kernel reads them: packed once, not again in every product.

A step of decoding multiplies few columns with every weight.  From rows as they are stored torch's
kernel reads at 7 GB/s where a packed copy is read at 12 to 17 (bfloat16, one thread of a Zen 4:
16,384 x 576 in 2.2 and 1.3 ms for one column, 3.5 and 2.1 for 16).  A copy of what is multiplied is
what it costs, so it is made only where it fits easily, and only for the layers' own forward during
ours: whoever calls the model otherwise, or trains it, has the layers as they are.

    with packed_layers(model):          # nothing happens where packing does not pay
        model(...)
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, nn

MOST_OF_FREE_MEMORY = 0.25
"""Share of the memory that is free which the copies may take."""

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
    """The packed copies of a model, made where there is none or where a weight has changed."""
    if model not in PACKED:
        layers = packable(model)
        needed = sum(layer.weight.nbytes for layer in layers)
        fits = needed <= MOST_OF_FREE_MEMORY * psutil.virtual_memory().available
        PACKED[model] = {layer: pack(layer) for layer in layers} if fits else {}
    known = PACKED[model]
    for layer, packed in known.items():
        weight = layer._parameters["weight"]
        assert weight is not None
        if not packed.is_of(weight):
            known[layer] = pack(layer)
    return known


def packable(model: nn.Module) -> list[nn.Linear]:
    """The linear layers for which the machine has a kernel of this kind."""
    if not torch.backends.mkldnn.is_available():
        return []
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return []
    return [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear
        and "forward" not in layer.__dict__
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.bfloat16
        and not layer.weight.is_inference()
    ]


def pack(layer: nn.Linear) -> PackedLinear:
    """A packed copy of a layer's weight."""
    weight = layer.weight
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1)
    multiply = torch.ops.mkldnn._linear_pointwise

    def forward(inputs: Tensor) -> Tensor:
        product = multiply(inputs, packed, layer._parameters["bias"], "none", [], "")
        assert isinstance(product, Tensor)
        return product

    return PackedLinear(forward, weight.data_ptr(), weight._version)
