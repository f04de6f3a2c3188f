"""A model whose matrices went through a type of llama.cpp's and back: what quantizing alone costs.

Every row is quantized by itself, so neither the order of rows nor what is stacked matters: the
weights are those that `write.py` would write, read again.
"""

import copy

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.export.gguf.architecture import architecture_for
from lightstride.export.gguf.quantize import pack
from lightstride.export.gguf.tensors import plan_tensors
from lightstride.export.gguf.weights import ModelWeights
from lightstride.models.engines import LLAMA_CPP
from lightstride.models.families.registry import adapter_for


@torch.no_grad()
def quantized_copy(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """A copy with the weights of a GGUF of this type, in the model's own type.

    Raises ExportError for a model that llama.cpp does not run, or a type that cannot be packed.
    """
    geometry = adapter_for(model.config).geometry(model.config)
    architecture = architecture_for(model.config, geometry)
    found = copy.deepcopy(model)
    naming = LLAMA_CPP[geometry.family].same_widths
    tensors = found.state_dict()
    for planned in plan_tensors(ModelWeights(found), geometry, architecture, naming, dtype):
        if GGML_QUANT_SIZES[planned.kind][0] > 1:
            for source in planned.sources:
                tensors[source].copy_(there_and_back(tensors[source], planned.kind))
    return found


def there_and_back(tensor: Tensor, kind: GGMLQuantizationType) -> Tensor:
    """The numbers of a matrix after packing, fp32."""
    packed = pack(tensor, kind).reshape(len(tensor), -1)
    return torch.from_numpy(quants.dequantize(packed, kind)).view(tensor.shape)
