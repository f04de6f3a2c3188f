"""Which llama.cpp architecture runs a model, the keys that describe it, and what is refused.

llama.cpp builds a model from the name of an architecture and a list of keys.  Which families it
runs at which widths is in `models/engines.py`; how its architectures compute is here.  A model
that none of them computes right is refused here, before anything is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from transformers import PreTrainedConfig

from lightstride.errors import ExportError
from lightstride.export.gguf.rope import Metadata, rope_metadata
from lightstride.models.engines import LLAMA_CPP, LlamaCpp
from lightstride.models.shapes import NO_ATTENTION, Geometry

MAX_BLOCKS = 512
"""llama.cpp's own limit on per-block lists."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How llama.cpp computes a family."""

    name: str
    interleaved: bool = False
    """Rotary embedding turns neighbouring rows, so rows of queries and keys change places."""
    fused: bool = False
    """Queries, keys and values are one matrix."""
    norm_offset: float = 0.0
    """Added to norm weights (Gemma stores them less one)."""
    activation: str = "silu"
    attention_bias: bool = True
    """Whether q, k, v and o may have biases."""


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        each.name: each
        for each in (
            Architecture(name="llama", interleaved=True),
            Architecture(name="deci", interleaved=True),
            Architecture(name="openelm", fused=True, attention_bias=False),
            Architecture(name="qwen2"),
            Architecture(name="qwen3", attention_bias=False),
            Architecture(name="gemma3", norm_offset=1.0, activation="gelu_pytorch_tanh"),
            Architecture(name="granite", interleaved=True),
            Architecture(name="olmo2", attention_bias=False),
            Architecture(name="phi3"),
        )
    }
)
"""By llama.cpp's own names."""


def architecture_for(config: PreTrainedConfig, geometry: Geometry) -> Architecture:
    """The architecture that runs this model; raises ExportError where there is none."""
    family = geometry.family
    if family not in LLAMA_CPP:
        raise ExportError(
            f"no file for llama.cpp is written of {family} "
            f"(but of {', '.join(LLAMA_CPP)}); transformers and vLLM run the folder as it is"
        )
    check_widths(geometry)
    runs = LLAMA_CPP[family]
    name: str | None = runs.same_widths
    if not (is_even(geometry) and takes_heads(runs, geometry)):
        name = runs.own_widths
    if name is None:
        raise ExportError(refusal(family, runs))
    architecture = ARCHITECTURES[name]
    check_config(config, geometry, architecture)
    return architecture


def takes_heads(runs: LlamaCpp, geometry: Geometry) -> bool:
    """Whether the architecture for the same widths takes this many heads."""
    width = geometry.attention[0].num_heads * geometry.head_dim
    return not runs.all_heads or width == geometry.hidden_size


def refusal(family: str, runs: LlamaCpp) -> str:
    """Why a family with one architecture does not run at other widths."""
    heads = " and with all its heads" if runs.all_heads else ""
    return (
        f"llama.cpp runs {family} only with the same widths in every block{heads}, and here it is "
        "otherwise: prune with --target gguf, which keeps to that"
    )


def is_even(geometry: Geometry) -> bool:
    """Whether all blocks have the same widths."""
    return len(set(geometry.attention)) == 1 and len(set(geometry.ffn)) == 1


def check_widths(geometry: Geometry) -> None:
    """Raise ExportError for widths that llama.cpp computes wrongly or crashes on."""
    if geometry.num_blocks > MAX_BLOCKS:
        raise ExportError(f"{geometry.num_blocks} blocks; llama.cpp takes at most {MAX_BLOCKS}")
    for block, (attention, ffn) in enumerate(zip(geometry.attention, geometry.ffn, strict=True)):
        if attention.num_heads and not ffn.num_channels:
            raise ExportError(
                f"block {block} has attention and no FFN, which llama.cpp computes wrongly: "
                "prune with --target gguf"
            )
    if geometry.attention[0] == NO_ATTENTION:
        raise ExportError(
            "block 0 has no attention, and llama.cpp takes the head size from it: "
            "prune with --target gguf"
        )


def check_config(config: PreTrainedConfig, geometry: Geometry, architecture: Architecture) -> None:
    """Raise ExportError for settings that the architecture does not compute."""
    if architecture.fused and NO_ATTENTION in geometry.attention:
        raise ExportError(
            "llama.cpp runs Qwen3 only with attention in every block: prune with --target gguf"
        )
    if architecture.fused and not geometry.tied_head:
        raise ExportError(
            "llama.cpp runs Qwen3 with widths that differ from block to block only where the head "
            "is tied to the embedding, and here it is not: prune with --target gguf"
        )
    if not architecture.attention_bias and config.attention_bias:
        raise ExportError(f"llama.cpp's {architecture.name} has no biases in attention")
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != architecture.activation and (activation, architecture.activation) != (
        "swish",
        "silu",
    ):
        raise ExportError(
            f"llama.cpp's {architecture.name} computes {architecture.activation}, "
            f"not this model's {activation}"
        )
    if architecture.name == "gemma3":
        check_gemma3(config, geometry)


def check_gemma3(config: PreTrainedConfig, geometry: Geometry) -> None:
    """Raise ExportError for what Gemma 3 may have and llama.cpp fixes."""
    divisor = geometry.head_dim
    if config.num_hidden_layers == 62:  # llama.cpp knows the 27B by its depth and scales by width
        divisor = config.hidden_size // geometry.attention[0].num_heads
    if config.query_pre_attn_scalar != divisor:
        raise ExportError(
            f"llama.cpp divides Gemma 3's attention scores by the root of {divisor}, "
            f"this model by that of {config.query_pre_attn_scalar}"
        )
    if config.attn_logit_softcapping or config.use_bidirectional_attention:
        raise ExportError("llama.cpp's gemma3 has neither capped nor two-way attention")


@dataclass(frozen=True)
class Description:
    """A GGUF's keys about a model, beside its tensors and its tokenizer."""

    metadata: Metadata
    tables: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Small tensors that are computed, not stored: rotary factors."""


def describe(
    config: PreTrainedConfig, geometry: Geometry, architecture: Architecture
) -> Description:
    """All keys under the architecture's own prefix, and the tensors they go with."""
    rope, tables = rope_metadata(config, geometry.head_dim)
    if tables and architecture.name not in ("llama", "deci", "phi3"):
        raise ExportError(f"llama.cpp's {architecture.name} scales all frequencies alike")
    keys: Metadata = {
        "block_count": geometry.num_blocks,
        "context_length": context_length(config, architecture),
        "embedding_length": geometry.hidden_size,
        "vocab_size": geometry.vocab_size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": geometry.head_dim,
        "attention.value_length": geometry.head_dim,
        **widths(geometry),
        **rope,
        **sliding(config, architecture),
        **multipliers(config, architecture),
    }
    return Description({f"{architecture.name}.{key}": keys[key] for key in keys}, tables)


def multipliers(config: PreTrainedConfig, architecture: Architecture) -> Metadata:
    """Granite's multipliers."""
    if architecture.name != "granite":
        return {}
    return {
        "embedding_scale": float(config.embedding_multiplier),
        "residual_scale": float(config.residual_multiplier),
        "attention.scale": float(config.attention_multiplier),
        "logit_scale": float(config.logits_scaling),
    }


def widths(geometry: Geometry) -> Metadata:
    """Widths of all blocks: three numbers where they are even, three lists where not."""
    channels = [ffn.num_channels for ffn in geometry.ffn]
    heads = [attention.num_heads for attention in geometry.attention]
    kv_heads = [attention.num_kv_heads for attention in geometry.attention]
    lists = {
        "feed_forward_length": channels,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
    }
    if is_even(geometry):
        return {key: values[0] for key, values in lists.items()}
    return dict(lists)


def context_length(config: PreTrainedConfig, architecture: Architecture) -> int:
    """Longest text that llama.cpp computes as transformers does.

    Outside Gemma 3 llama.cpp has no sliding window for these families; within one window a
    sliding attention is a full one, so the window is the limit.
    """
    longest = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    if architecture.name == "gemma3" or window is None:
        return longest
    return min(longest, int(window))


def sliding(config: PreTrainedConfig, architecture: Architecture) -> Metadata:
    """Keys of a sliding attention, for the architectures that read them."""
    if architecture.name == "phi3":
        return {"attention.sliding_window": 0}
    if architecture.name != "gemma3":
        return {}
    full = [kind == "full_attention" for kind in config.layer_types]
    period = full.index(True) + 1 if any(full) else len(full) + 1
    if full != [(block + 1) % period == 0 for block in range(len(full))]:
        raise ExportError("llama.cpp's gemma3 wants each n-th block to see everything")
    keys: Metadata = {"attention.sliding_window": int(config.sliding_window)}
    if period != 6 and (any(full) or len(full) >= 6):
        keys["attention.sliding_window_pattern"] = period
    return keys
