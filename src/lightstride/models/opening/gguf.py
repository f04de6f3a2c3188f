"""Reading .gguf files: converted once into an ordinary checkpoint folder, kept in the cache.

transformers reads a .gguf file but refuses to save the model it read, and takes minutes to read
a large one.  So the tensors are moved, in fp32, into a plain model of the same class.  What it
drops on the way is put back: Llama 3's stretched positions, the end tokens beyond one, the head
size, digits that are words of their own, and Gemma 3's scale and pattern of sliding blocks.

Shapes: F rotary frequencies (half the head size).
"""

import io
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lightstride.errors import ModelError, UnknownFamilyError
from lightstride.models.opening.conversions import Source, kept
from lightstride.models.opening.explain import errors_explained, quiet
from lightstride.models.opening.gguf_header import check_gguf

HAS_GGUF = find_spec("gguf") is not None
if HAS_GGUF:
    from gguf import GGUFReader

VERSION = 2
"""Counts up when conversion changes, so that older conversions are made again."""
ARCHITECTURES = ("gemma3", "llama", "phi3", "qwen2", "qwen3")
CONTROL_TOKEN = 3
END_TOKENS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
)
"""Control tokens that end an answer wherever they exist; a .gguf file may name but one of them."""
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
SPLIT_PLAINLY = ("gpt-2", "gpt2", "mpt", "olmo", "jais")
"""llama.cpp's names for GPT-2's split."""
SPLIT_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Its names for the same after every digit has been split off, which transformers forgets."""
GEMMA3_27B_BLOCKS = 62
"""llama.cpp knows the 27B by its depth, and scales its scores by another size than the head's."""
GEMMA3_PERIOD = 6
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The parts of a .gguf file that transformers does not read."""

    end_tokens: list[int]
    """Ids of all tokens that end an answer, the file's own end token first."""
    stretch_F: Tensor | None
    """Divisor of each rotary frequency."""
    settings: dict[str, object]
    """Config values."""
    split: str | None
    """Name of the way in which a byte-level tokenizer splits text into words."""
    num_weights: int
    """Elements of all tensors but that of the frequencies."""


def gguf_as_folder(source: Source) -> Path:
    """The folder with the checkpoint of a .gguf file, converted now if it was not before."""

    def convert(folder: Path) -> None:
        with in_one_file(source, folder) as path, named_as(path, str(source.parts[0])):
            metadata = read_metadata(path)
            said = f"{source.name} ({source.num_bytes / 1e6:,.0f} MB)"
            sys.stderr.write(f"lightstride: converting {said} once; the copy is kept ...\n")
            started = time.perf_counter()
            model = read_model(path, metadata)
            tokenizer = read_tokenizer(path, metadata)
            with quiet():
                save_model(model, folder)
                tokenizer.save_pretrained(folder)
            seconds = time.perf_counter() - started
            sys.stderr.write(f"lightstride: converted {source.name} in {seconds:.0f} s\n")

    return kept(source, VERSION, convert)


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write config and weights, whatever the process's rank is.

    transformers' own writes nothing but on rank 0, which may have a cache of its own elsewhere.
    """
    model.config.architectures = [type(model).__name__]
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    weights = {name: each.detach().contiguous() for name, each in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@contextmanager
def in_one_file(source: Source, folder: Path) -> Iterator[Path]:
    """The file in a folder of its own, so that nothing beside it is read, while it is needed.

    One in pieces is put together, one that is whole is linked to.
    """
    alone = folder / "source"
    alone.mkdir()
    path = alone / f"{source.name}.gguf"
    if len(source.parts) == 1:
        path.symlink_to(source.parts[0].resolve())
    else:
        with path.open("wb") as whole:
            for part in source.parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, whole)
    yield path
    shutil.rmtree(alone)


@contextmanager
def named_as(path: Path, name: str) -> Iterator[None]:
    """Inside this context errors call a file by the name that the user gave it."""
    try:
        yield
    except ModelError as error:
        raise type(error)(str(error).replace(str(path), name)) from error


def read_metadata(path: Path) -> Metadata:
    """Metadata of a .gguf file; raises ModelError on a file that cannot be converted."""
    if not HAS_GGUF:
        raise ModelError("reading a .gguf file needs the package gguf; pip install gguf")
    check_gguf(path)
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise ModelError(f"{path} is truncated, or not a .gguf file: {error}") from error
    with errors_explained(str(path), "head"):
        return metadata_of(path, reader)


def metadata_of(path: Path, reader: "GGUFReader") -> Metadata:
    """Metadata of a file that was opened; raises ModelError where it cannot be converted."""
    architecture = field(reader, "general.architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnknownFamilyError(
            f".gguf architecture {architecture!r} is not supported; supported: {known}"
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    scaling = field(reader, f"{architecture}.rope.scaling.type") or "none"
    if scaling != "none" or any(name.startswith("rope_factors") for name in tensors):
        raise ModelError(
            f"{path} stretches positions in a way (rope scaling {scaling!r}) that cannot be read"
            " from a .gguf file; give the original checkpoint"
        )
    stretch = tensors.pop("rope_freqs.weight", None)
    by_bytes = field(reader, "tokenizer.ggml.model") == "gpt2"
    return Metadata(
        end_tokens=read_end_tokens(reader),
        stretch_F=None if stretch is None else torch.tensor(stretch.data),
        settings=config_overrides(reader, architecture),
        split=str(field(reader, "tokenizer.ggml.pre")) if by_bytes else None,
        num_weights=sum(int(tensor.n_elements) for tensor in tensors.values()),
    )


def field(reader: "GGUFReader", key: str) -> object:
    """Value of a metadata field; None where there is no such field."""
    field = reader.get_field(key)
    return None if field is None else field.contents()


def read_end_tokens(reader: "GGUFReader") -> list[int]:
    """Ids of all tokens that end an answer, the file's own end token first."""
    named = [field(reader, f"tokenizer.ggml.{key}") for key in END_KEYS]
    found = [token for token in named if isinstance(token, int)]
    tokens = field(reader, "tokenizer.ggml.tokens")
    types = field(reader, "tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(types, list):
        control = {
            text: token
            for token, (text, kind) in enumerate(zip(tokens, types, strict=True))
            if kind == CONTROL_TOKEN
        }
        found += [control[text] for text in END_TOKENS if text in control]
    return list(dict.fromkeys(found))


def config_overrides(reader: "GGUFReader", architecture: str) -> dict[str, object]:
    """Config values that transformers would guess: by the family's usual, or its largest size."""

    def number(key: str) -> int | None:
        found = field(reader, f"{architecture}.{key}")
        return found if isinstance(found, int) else None

    head_dim = number("attention.key_length")
    settings: dict[str, object] = {} if head_dim is None else {"head_dim": head_dim}
    if architecture != "gemma3":
        return settings
    num_blocks, hidden_size = number("block_count"), number("embedding_length")
    num_heads = number("attention.head_count")
    assert num_blocks
    assert hidden_size
    assert num_heads
    by_width = num_blocks == GEMMA3_27B_BLOCKS or head_dim is None
    settings["query_pre_attn_scalar"] = hidden_size // num_heads if by_width else head_dim
    period = number("attention.sliding_window_pattern") or GEMMA3_PERIOD
    settings["layer_types"] = [
        "sliding_attention" if (block + 1) % period else "full_attention"
        for block in range(num_blocks)
    ]
    return settings


def read_model(path: Path, metadata: Metadata) -> PreTrainedModel:
    """The model in a .gguf file, as if it had never been in one."""
    with errors_explained(str(path), "weights"):
        config = AutoConfig.from_pretrained(
            path.parent, gguf_file=path.name, trust_remote_code=False
        )
        config.update(metadata.settings)
        with bar_on_terminals():
            read = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
            )
    if sum(parameter.numel() for parameter in read.parameters()) != metadata.num_weights:
        raise ModelError(f"{path} holds other tensors than transformers reads, such as biases")
    plain = without_quantization(read)
    if metadata.stretch_F is not None:
        apply_rope_factors(plain.config, metadata.stretch_F, path)
    if metadata.end_tokens:
        plain.generation_config.eos_token_id = metadata.end_tokens
    return plain


def bar_on_terminals() -> AbstractContextManager[object]:
    """Keeps transformers' bar, a line for each refresh elsewhere, to terminals."""
    return nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())


def read_tokenizer(path: Path, metadata: Metadata) -> PreTrainedTokenizerBase:
    """The tokenizer in a .gguf file; raises ModelError when we do not know how it splits text."""
    with errors_explained(str(path), "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, trust_remote_code=False
        )
    if metadata.split in SPLIT_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    elif metadata.split not in (None, *SPLIT_PLAINLY, *GGUF_PRE_TOKENIZER_SPLITS):
        raise ModelError(
            f"the tokenizer of {path} splits text in a way ({metadata.split!r}) that cannot be read"
            " from a .gguf file; give the original checkpoint"
        )
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def without_quantization(model: PreTrainedModel) -> PreTrainedModel:
    """The same tensors in a model that does not know that it was quantized once."""
    settings = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        settings.pop(key, None)
    with torch.device("meta"):
        plain = type(model)(type(model.config)(**settings))
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = GenerationConfig.from_model_config(plain.config)
    return plain


def apply_rope_factors(config: PreTrainedConfig, stretch_F: Tensor, path: Path) -> None:
    """Write Llama 3's scaling into a config; raises ModelError if the file's is another."""
    factor = float(stretch_F.max())
    config.rope_parameters = {**config.rope_parameters, **LLAMA3_SCALING, "factor": factor}
    scaled_F, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    exponents_F = torch.arange(0, 2 * len(scaled_F), 2) / (2 * len(scaled_F))
    plain_F = config.rope_parameters["rope_theta"] ** -exponents_F
    if not torch.allclose(plain_F / scaled_F, stretch_F, rtol=1e-3):
        raise ModelError(f"{path} stretches positions unlike Llama 3; give the original checkpoint")
