"""What a model folder must be before transformers reads it: bounded, typed, and without code.

transformers trusts its files: a number where a text belongs is a traceback, a size of billions a
hang, a pickle is opened, a module is run.  Here each file is read first, with types and ranges,
and what would be computed wrongly, run or waited for is refused in one line.

Only local folders are looked at; files of the hub's cache are links into it, and may stay.
"""

import math
import os
import re
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from lightstride.errors import ModelError
from lightstride.files.read import (
    MEBIBYTE,
    file_size,
    parse_json,
    read_bytes,
    read_json,
    read_text,
)

Size = Annotated[int, Meta(ge=1, le=1 << 24)]
"""A width or a vocabulary."""
Experts = Annotated[int, Meta(ge=1, le=1 << 16)]
Token = Annotated[int, Meta(ge=-1, le=1 << 24)]
Number = Annotated[float, Meta(gt=0, le=1e12)]
RopeValue = bool | int | float | str | list[float | int | None] | None

MAX_TOKENIZER_BYTES = 256 * MEBIBYTE
MAX_TEMPLATE_BYTES = MEBIBYTE
MAX_HEADER_BYTES = 100 * MEBIBYTE
"""safetensors' own limit."""
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
"""Of weights; buffers may also be of the integers below."""
INTEGERS = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
ADAPTER_FILE = "adapter_config.json"
MOST_DIMENSIONS = 8
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
JSON_FILES = ("generation_config.json", "special_tokens_map.json", "added_tokens.json")
USED = "conversion.json"
"""Beside a converted copy; its time changes at each use, and the gate does not read it."""
LEARNED_POSITIONS = ("opt", "lightstride_opt")
LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


class ModelConfig(msgspec.Struct):
    """The fields of config.json that sizes, loops and numbers come from; others are free."""

    model_type: str
    vocab_size: Size | None = None
    hidden_size: Size | None = None
    intermediate_size: Size | list[Size] | None = None
    ffn_dim: Size | None = None
    word_embed_proj_dim: Size | None = None
    moe_intermediate_size: Size | None = None
    num_experts: Experts | None = None
    num_local_experts: Experts | None = None
    num_experts_per_tok: Experts | None = None
    expert_widths: Annotated[list[Size], Meta(max_length=1 << 16)] | None = None
    num_hidden_layers: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    num_attention_heads: Size | None = None
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Annotated[int, Meta(ge=1, le=1 << 31)] | None = None
    sliding_window: Annotated[int, Meta(ge=1, le=1 << 31)] | None = None
    rms_norm_eps: Annotated[float, Meta(ge=0, le=1)] | None = None
    rope_theta: Number | None = None
    rope_parameters: dict[str, RopeValue | dict[str, RopeValue] | None] | None = None
    rope_scaling: dict[str, RopeValue] | None = None
    initializer_range: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    bos_token_id: Token | None = None
    eos_token_id: Token | list[Token] | None = None
    pad_token_id: Token | None = None
    tie_word_embeddings: bool | None = None
    use_cache: bool | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    hidden_act: str | None = None
    architectures: list[str] | None = None
    layer_types: list[str] | None = None
    per_layer_config: dict[str, dict[str, object]] | list[dict[str, object]] | None = None
    auto_map: dict[str, str | list[str | None]] | None = None
    quantization_config: dict[str, object] | None = None
    attn_implementation: Literal["eager", "sdpa"] | None = None
    """Others name kernels, which may be code on the hub."""
    _attn_implementation: Literal["eager", "sdpa"] | None = None


class TokenizerConfig(msgspec.Struct):
    """The fields of tokenizer_config.json that are computed with; others are free."""

    model_max_length: Annotated[float, Meta(gt=0)] | None = None
    padding_side: Literal["left", "right"] | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None


class Tensor(msgspec.Struct):
    """What a safetensors header says of one tensor."""

    dtype: str
    shape: list[Annotated[int, Meta(ge=0, le=1 << 40)]]
    data_offsets: tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=0)]]


class Index(msgspec.Struct):
    """model.safetensors.index.json."""

    weight_map: dict[str, str]


def check_folder(folder: Path, *, trust_remote_code: bool) -> None:
    """Raise ModelError, with the file's name, for a folder that must not be opened.

    A folder that has not changed since it was checked is not read again.
    """
    try:
        stamps = tuple(
            (path.name, path.stat().st_mtime_ns, path.stat().st_size)
            for path in sorted(folder.iterdir())
            if path.name != USED
        )
    except OSError as error:
        raise ModelError(f"cannot read {folder}: {error.strerror}") from error
    check_stamped(folder, stamps, trust_remote_code=trust_remote_code)


@lru_cache(maxsize=16)
def check_stamped(
    folder: Path, _stamps: tuple[tuple[str, int, int], ...], *, trust_remote_code: bool
) -> None:
    """`check_folder` of a folder whose files have these times and sizes."""
    check_entries(folder)
    config = read_json(folder / "config.json", dict[str, object], ModelError)
    check_code(folder, config, trust_remote_code=trust_remote_code)
    check_config(config, str(folder / "config.json"))
    for name in JSON_FILES:
        if (folder / name).exists():
            read_json(folder / name, dict[str, object], ModelError)
    check_tokenizer_files(folder)


def check_config(config: Mapping[str, object], where: str) -> None:
    """Raise ModelError where a field that sizes depend on is of another type or out of range."""
    try:
        known = msgspec.convert(config, ModelConfig)
    except msgspec.ValidationError as error:
        raise ModelError(f"{where}: {error}") from error
    if known.quantization_config is not None:
        method = known.quantization_config.get("quant_method")
        raise ModelError(
            f"{where}: the model is quantized ({method!r}), which is not read; give the one that "
            "it was made from"
        )
    for name in ("dtype", "torch_dtype"):
        value = getattr(known, name)
        if value is not None and value.removeprefix("torch.") not in FLOATS:
            raise ModelError(f"{where}: {name} is {value!r}; one of {', '.join(FLOATS)} is known")


FLOATS = ("float32", "bfloat16", "float16", "float64", "auto")


def check_code(folder: Path, config: Mapping[str, object], *, trust_remote_code: bool) -> None:
    """Raise ModelError for code of the folder's that would have to run, unless that is allowed.

    Classes of ours have a modeling file beside them that is never needed here.
    """
    if trust_remote_code:
        return
    sources = {"config.json": config}
    for name in ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        if (folder / name).exists():
            sources[name] = read_json(folder / name, dict[str, object], ModelError)
    for name, document in sources.items():
        model_type = str(config.get("model_type"))
        if document.get("auto_map") and not model_type.startswith("lightstride_"):
            files = module_files(document["auto_map"])
            raise ModelError(
                f"{folder / name} asks to run code of the folder ({', '.join(files)}); read it, "
                "then allow it with --trust-remote-code"
            )


def module_files(auto_map: object) -> list[str]:
    """The Python files that an auto_map names, in order."""
    values = auto_map.values() if isinstance(auto_map, Mapping) else [auto_map]
    names = [n for v in values for n in (v if isinstance(v, list) else [v]) if n]
    return sorted({f"{str(name).rpartition('.')[0].split('--')[-1]}.py" for name in names})


def check_entries(folder: Path) -> None:
    """Raise ModelError for pipes, devices, and links that leave the folder.

    Links into the hub's own cache may stay.
    """
    home = folder.resolve()
    cache = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    for path in folder.iterdir():
        if path.is_symlink():
            target = Path(os.path.realpath(path))
            if not (target.is_relative_to(home) or target.is_relative_to(cache)):
                raise ModelError(f"{path} is a link that leaves its folder, to {target}")
        if not path.is_dir():
            file_size(path, ModelError)
    if (folder / ADAPTER_FILE).exists():
        raise ModelError(
            f"{folder} has adapters ({ADAPTER_FILE}), which are not read; merge them into the model"
        )


def check_tokenizer_files(folder: Path) -> None:
    """Raise ModelError for tokenizer files that are no JSON objects, or too large."""
    path = folder / "tokenizer.json"
    if path.exists():
        data = read_bytes(path, ModelError, limit=MAX_TOKENIZER_BYTES)
        try:
            msgspec.json.decode(data, type=dict[str, msgspec.Raw])  # looked through, not built
        except (ValueError, RecursionError) as error:  # msgspec's own are ValueErrors
            raise ModelError(f"{path}: {error}") from error
    if (folder / "tokenizer_config.json").exists():
        read_json(folder / "tokenizer_config.json", TokenizerConfig, ModelError)
    templates = [folder / "chat_template.jinja", *folder.glob("additional_chat_templates/*.jinja")]
    for template in templates:
        if template.exists():
            read_text(template, ModelError, limit=MAX_TEMPLATE_BYTES)


def check_weight_files(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's safetensors files; raises ModelError unless they are sound."""
    files = weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_header(file)
    for name, tensor in tensors.items():
        if tensor.dtype in INTEGERS and name.endswith((".weight", ".bias")):
            raise ModelError(f"{folder}: {name} is of whole numbers ({tensor.dtype}), as no weight")
    config = read_json(folder / "config.json", dict[str, object], ModelError)
    check_layers(folder, config, tensors)
    check_least(folder, config, tensors)
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model; pickles are refused, and names that leave the folder."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.exists():
        return [single]
    if index.exists():
        names = set(read_json(index, Index, ModelError).weight_map.values())
        for name in sorted(names):
            if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
                raise ModelError(
                    f"{index} names the file {name!r}; it must be a .safetensors file beside it"
                )
            if not (folder / name).is_file():
                raise ModelError(f"{index} names {name}, which is missing")
        return [folder / name for name in sorted(names)]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which can run code and is not "
            'read; convert it where you trust it: python -c "from transformers import AutoModel'
            f"ForCausalLM as M; M.from_pretrained('{folder}').save_pretrained('converted')\""
        )
    raise ModelError(f"{folder} has no weights: neither model.safetensors nor its index is there")


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors that a safetensors file holds, by name; raises ModelError where it is damaged."""
    size = file_size(path, ModelError)
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise ModelError(f"{path} is truncated or damaged: its header of {length:,} bytes")
        header = file.read(length)
    document = parse_json(header, dict[str, object], f"the header of {path}", ModelError)
    try:
        msgspec.convert(document.pop("__metadata__", None), dict[str, str] | None)
        tensors = msgspec.convert(document, dict[str, Tensor])
    except msgspec.ValidationError as error:
        raise ModelError(f"the header of {path}: {error}") from error
    for name, tensor in tensors.items():
        check_tensor(path, name, tensor, size - 8 - length)
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda each: each[1].data_offsets):
        if tensor.data_offsets[0] != end:
            raise ModelError(f"{path} is damaged: {name} overlaps another tensor, or leaves a gap")
        end = tensor.data_offsets[1]
    if end != size - 8 - length:
        raise ModelError(
            f"{path} is damaged: {size - 8 - length - end:,} bytes belong to no tensor"
        )
    return tensors


def check_tensor(path: Path, name: str, tensor: Tensor, num_bytes: int) -> None:
    """Raise ModelError unless a tensor's type, shape and place in the file agree."""
    width = {**DTYPES, **INTEGERS}.get(tensor.dtype)
    if width is None:
        raise ModelError(f"{path}: {name} is of the type {tensor.dtype!r}, which is not known")
    if len(tensor.shape) > MOST_DIMENSIONS:
        raise ModelError(
            f"{path}: {name} has {len(tensor.shape)} dimensions; no weight has so many"
        )
    count = 1
    for extent in tensor.shape:
        count *= extent
    first, last = tensor.data_offsets
    if last - first != count * width or last > num_bytes:
        raise ModelError(
            f"{path} is truncated or damaged: {name} of shape {tensor.shape} does not fit its place"
        )


def check_layers(folder: Path, config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    """Raise ModelError where the config has more layers than there are weights for."""
    layers = [int(found[1]) for name in tensors if (found := LAYER.search(f".{name}"))]
    there, wanted = max(layers, default=-1) + 1, config.get("num_hidden_layers")
    if there and isinstance(wanted, int) and wanted > there:
        raise ModelError(
            f"{folder / 'config.json'} asks for {wanted} layers; there are weights of {there}"
        )


def check_least(folder: Path, config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    """Raise ModelError where the config's sizes are more than all weights together.

    transformers would make room for them first.
    """
    there = sum(math.prod(tensor.shape) for tensor in tensors.values())
    least = least_parameters(config)
    if least > there:
        raise ModelError(
            f"{folder / 'config.json'} asks for at least {least:,} parameters; there are {there:,}"
        )


def layers_own(config: Mapping[str, object]) -> dict[int, dict[str, object]]:
    """What layers of a config have of their own, by number; of more than ten, files say "07"."""
    found = config.get("per_layer_config")
    if not isinstance(found, dict):
        return {}
    numbers = {key: int(key) for key in found if re.fullmatch("[0-9]{1,9}", str(key))}
    return {each: found[key] for key, each in numbers.items() if isinstance(found[key], dict)}


def least_channels(values: Mapping[str, object]) -> int:
    """FFN channels that a layer of these values has at least; with experts it may have one FFN."""
    sizes = [
        value
        for name in ("intermediate_size", "ffn_dim", "moe_intermediate_size")
        if isinstance(value := values.get(name), int)
    ]
    widths = values.get("expert_widths")
    if isinstance(widths, list):
        sizes.append(sum(width for width in widths if isinstance(width, int)))
    return min(sizes, default=0)


def least_parameters(config: Mapping[str, object]) -> int:
    """Parameters that a decoder of these sizes has at least: embedding, attention, FFN."""

    def size(values: Mapping[str, object], name: str, otherwise: int = 0) -> int:
        value = values.get(name)
        return value if isinstance(value, int) else otherwise

    hidden = size(config, "hidden_size")
    total = size(config, "vocab_size") * size(config, "word_embed_proj_dim", hidden)
    if config.get("model_type") in LEARNED_POSITIONS:
        total += size(config, "max_position_embeddings") * hidden
    own = layers_own(config)
    for layer in range(size(config, "num_hidden_layers")):
        values = {**config, **own.get(layer, {})}
        heads = 0 if "skip" in values else size(values, "num_attention_heads")
        width = size(values, "head_dim", hidden // heads if heads else 0)
        channels = least_channels(values)
        kv_heads = min(heads, size(values, "num_key_value_heads", heads))
        total += hidden * (2 * channels + 2 * width * (heads + kv_heads))
    return total
