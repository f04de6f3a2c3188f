"""In which type each tensor of a GGUF is stored, and the numbers in that type.

Vectors stay f32.  `q8_0` and the float types treat all matrices alike.  `q4_0` and `q4_k_m`
follow llama.cpp's recipe: the head in q6_k, and for q4_k_m the values and the FFN's last matrix
of some blocks in q6_k.  Blocks of numbers are 32 wide (256 for the k types): a matrix whose rows
do not divide goes to the next type that fits, and the caller is told.

llama.cpp's own quantizer packs the k types; it is the C function `ggml_quantize_chunk`, found in
the library of the `xllamacpp` package.  It and numpy's twin in `gguf` agree on q8_0 and q4_0.
"""

import ctypes
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, quants
from numpy.typing import NDArray
from torch import Tensor

from lightstride.errors import ExportError

Q = GGMLQuantizationType

MATRIX_TYPES: Mapping[str, GGMLQuantizationType] = MappingProxyType(
    {"f32": Q.F32, "f16": Q.F16, "bf16": Q.BF16, "q8_0": Q.Q8_0, "q4_0": Q.Q4_0, "q4_k_m": Q.Q4_K}
)
FILE_TYPES: Mapping[str, LlamaFileType] = MappingProxyType(
    {
        "f32": LlamaFileType.ALL_F32,
        "f16": LlamaFileType.MOSTLY_F16,
        "bf16": LlamaFileType.MOSTLY_BF16,
        "q8_0": LlamaFileType.MOSTLY_Q8_0,
        "q4_0": LlamaFileType.MOSTLY_Q4_0,
        "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    }
)
WIDER: Mapping[GGMLQuantizationType, GGMLQuantizationType] = MappingProxyType(
    {
        Q.Q4_K: Q.Q5_0,
        Q.Q5_K: Q.Q5_1,
        Q.Q6_K: Q.Q8_0,
        Q.Q4_0: Q.F16,
        Q.Q5_0: Q.F16,
        Q.Q5_1: Q.F16,
        Q.Q8_0: Q.F16,
    }
)
"""Where rows do not divide into a type's blocks, the type llama.cpp takes instead."""


def wanted_type(
    name: str, dtype: str, block: int | None, num_blocks: int, *, is_head: bool
) -> GGMLQuantizationType:
    """The type of a matrix by llama.cpp's recipe, were its rows to divide."""
    plain = MATRIX_TYPES[dtype]
    if dtype not in ("q4_0", "q4_k_m"):
        return plain
    if is_head:
        return Q.Q6_K
    if dtype == "q4_k_m" and block is not None:
        if "attn_qkv" in name:
            return Q.Q5_K
        if ("attn_v." in name or "ffn_down." in name) and needs_more_bits(block, num_blocks):
            return Q.Q6_K
    return plain


def needs_more_bits(block: int, num_blocks: int) -> bool:
    """Whether a block is among the first or last eighth, or every third between."""
    eighth = num_blocks // 8
    return block < eighth or block >= 7 * num_blocks // 8 or (block - eighth) % 3 == 2


def fitting_type(wanted: GGMLQuantizationType, row_length: int) -> GGMLQuantizationType:
    """The wanted type, or the first wider one whose blocks divide the rows."""
    while row_length % GGML_QUANT_SIZES[wanted][0]:
        wanted = WIDER[wanted]
    return wanted


def packed_size(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Bytes of a tensor of this shape in this type."""
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape, dtype=np.int64)) // block_size * block_bytes


def pack(tensor: Tensor, kind: GGMLQuantizationType) -> NDArray[np.generic]:
    """The tensor's numbers in this type, as an array to write."""
    if kind == Q.F32:
        return numpy_of(tensor.float())
    if kind == Q.F16:
        return numpy_of(tensor.half())
    if kind == Q.BF16:
        return numpy_of(tensor.bfloat16().view(torch.int16))
    floats = numpy_of(tensor.float())
    if kind == Q.Q8_0:
        packed: NDArray[np.generic] = quants.quantize(floats, kind)
        return packed
    return pack_with_engine(floats, kind)


def numpy_of(tensor: Tensor) -> NDArray[np.generic]:
    """A contiguous array of the tensor's numbers."""
    array: NDArray[np.generic] = tensor.detach().contiguous().cpu().numpy()
    return array


def pack_with_engine(array: NDArray[np.generic], kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    """Numbers packed by llama.cpp's own quantizer, without an importance matrix."""
    packed = np.empty(packed_size(array.shape, kind), dtype=np.uint8)
    row_length = array.shape[-1]
    written = engine_quantizer()(
        int(kind),
        array.ctypes.data,
        packed.ctypes.data,
        0,
        array.size // row_length,
        row_length,
        None,
    )
    assert written == packed.size
    return packed


@functools.cache
def engine_quantizer() -> "ctypes._NamedFuncPointer":
    """llama.cpp's quantizer; raises ExportError where the binding or the function is missing."""
    advice = "write --dtype f16 and run llama.cpp's llama-quantize on the file"
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise ExportError(f"this type needs the package xllamacpp (extra gguf); or {advice}")
    libraries = sorted(Path(found.origin).parent.glob("xllamacpp*.so"))
    try:
        function = ctypes.CDLL(str(libraries[0])).ggml_quantize_chunk
    except (IndexError, OSError, AttributeError):
        raise ExportError(
            f"this build of xllamacpp keeps its quantizer to itself; {advice}"
        ) from None
    function.restype = ctypes.c_size_t
    function.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return function
