"""EAGLE-3 heads on disk, in the two layouts that engines and publishers use.

    flat          `LlamaForCausalLMEagle3`, midlayer.*: SGLang, vLLM, llama.cpp's converter
    speculators   nested config, layers.0.*: `vllm serve FOLDER` starts base and head

Engines count the base's layers differently (a list of ids means other layers in vLLM than in
SGLang), so heads with the default taps are written without ids, on which all agree.
`norm_before_residual` is always written: vLLM takes a missing one for true in speculators' layout.

Facts: vLLM 0.33 `llama_eagle3.py`, SGLang 0.5.23 `llama_eagle3.py`, speculators 0.9
`models/eagle3`, llama.cpp `conversion/llama.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import torch
from msgspec import Meta
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightstride.errors import ConfigError, ModelError
from lightstride.files import whole_folder, write_json
from lightstride.files.read import read_json
from lightstride.models.opening.explain import errors_explained
from lightstride.models.opening.gate import RopeValue, Size, read_header
from lightstride.smash.model.eagle3 import Eagle3Config, Eagle3Head, default_taps

Layout = Literal["flat", "speculators"]
ARCHITECTURE = "LlamaForCausalLMEagle3"
MODEL_TYPE = "eagle3"
"""Of speculators' configs."""
LAYER = {"flat": "midlayer", "speculators": "layers.0"}
LAYER_NAMES = {
    "embedding_norm": "input_layernorm",
    "state_norm": "hidden_norm",
    "ffn_norm": "post_attention_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
OWN_NAMES = {"taps_norm": "input_norm", "tap_norms": "fc_norm", "embedding": "embed_tokens"}
SWITCHES = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")


class HeadFields(msgspec.Struct):
    """What a head's config may say, beside its layer."""

    draft_vocab_size: Size | None = None
    norm_before_residual: bool | None = None
    norm_before_fc: bool | None = None
    fc_norm: bool | None = None
    norm_output: bool | None = None


class LayerFields(msgspec.Struct):
    """What a head's config may say of its layer."""

    hidden_size: Size
    num_attention_heads: Size
    intermediate_size: Size
    vocab_size: Size
    max_position_embeddings: Annotated[int, Meta(ge=1, le=1 << 31)]
    rms_norm_eps: Annotated[float, Meta(ge=0, le=1)]
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    rope_theta: Annotated[float, Meta(gt=0, le=1e12)] | None = None
    rope_scaling: dict[str, RopeValue] | None = None
    rope_parameters: dict[str, RopeValue] | None = None
    sliding_window: Annotated[int, Meta(ge=1, le=1 << 31)] | None = None
    layer_types: list[str] | None = None


def stored_name(name: str, layout: Layout) -> str:
    """The published name of one of our tensors."""
    if name == "d2t_M":
        return "d2t"
    module, _, rest = name.partition(".")
    if module in LAYER_NAMES:
        return f"{LAYER[layout]}.{LAYER_NAMES[module]}.{rest}"
    return f"{OWN_NAMES.get(module, module)}.{rest}"


def write_head(
    head: Eagle3Head,
    folder: str | Path,
    *,
    layout: Layout,
    base: str,
    architectures: list[str],
    num_blocks: int,
    num_tokens: int = 3,
) -> None:
    """Write a head into a new folder; `base` and `architectures` say what it drafts for.

    `num_tokens` is how many tokens an engine should draft a step (speculators' layout alone).
    Raises OutputError when the folder is not new or empty, or cannot be written.
    """
    config = head.config
    ids = None if config.taps == default_taps(num_blocks) else list(config.taps)
    if layout == "flat":
        document = flat_config(config)
        if ids is not None:
            nested = [tap - 1 for tap in ids]  # SGLang reads the input of block id + 1
            document["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": nested}
    else:
        document = speculators_config(config, base, architectures, num_tokens)
        if ids is not None:
            document["eagle_aux_hidden_state_layer_ids"] = ids
    tensors = stored_tensors(head, layout)
    tensors["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool)
    tensors["t2d"][head.tokens_of_rows().cpu()] = True
    with whole_folder(Path(folder)) as partial:
        write_json(partial / "config.json", document)
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})


def stored_tensors(head: Eagle3Head, layout: Layout) -> dict[str, Tensor]:
    """The head's tensors by their published names."""
    return {
        stored_name(name, layout): tensor.contiguous() for name, tensor in head.state_dict().items()
    }


def flat_config(config: Eagle3Config) -> dict[str, object]:
    """The config of the flat layout, without numbers of blocks."""
    return {
        "architectures": [ARCHITECTURE],
        **layer_settings(config),
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.hidden_size,
        **{name: getattr(config, name) for name in SWITCHES},
    }


def layer_settings(config: Eagle3Config) -> dict[str, object]:
    """The head's one layer in the words of a Llama config."""
    rope = dict(config.rope)
    theta = rope.pop("rope_theta", 10_000.0)
    is_scaled = rope.get("rope_type", "default") != "default"
    settings: dict[str, object] = {
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.num_channels,
        "num_hidden_layers": 1,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.epsilon,
        "rope_theta": theta,
        "rope_scaling": rope if is_scaled else None,
        "max_position_embeddings": config.max_positions,
        "vocab_size": config.vocab_size,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    if config.window is not None:
        settings |= {"sliding_window": config.window, "layer_types": ["sliding_attention"]}
    return settings


def speculators_config(
    config: Eagle3Config,
    base: str,
    architectures: list[str],
    num_tokens: int,
) -> dict[str, object]:
    """The config that `vllm serve FOLDER` and speculators read."""
    return {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": MODEL_TYPE,
        "speculators_version": "0.9.0",
        "speculators_config": {
            "algorithm": MODEL_TYPE,
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": num_tokens}],
            "verifier": {"name_or_path": base, "architectures": architectures},
        },
        "transformer_layer_config": layer_settings(config),
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.hidden_size,
        "embed_requires_grad": False,
        **{name: getattr(config, name) for name in SWITCHES},
    }


def read_head(folder: str | Path, *, num_blocks: int) -> Eagle3Head:
    """The head in a folder of either layout, in the dtype it is stored in.

    Raises ModelError that names the key or tensor that is missing, surplus or of another shape.
    """
    folder = Path(folder)
    document = read_json(folder / "config.json", dict[str, object], ModelError)
    layout: Layout = "speculators" if "speculators_model_type" in document else "flat"
    tensors = read_tensors(folder)
    try:
        layer = document.get("transformer_layer_config") if layout == "speculators" else document
        msgspec.convert(document, HeadFields)
        msgspec.convert(layer, LayerFields)
        config = read_config(document, layout, tensors, num_blocks)
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise ModelError(f"{folder / 'config.json'}: no EAGLE-3 head: {error}") from error
    except ConfigError as error:
        raise ModelError(f"{folder / 'config.json'}: {error}") from error
    with torch.device("meta"):
        head = Eagle3Head(config)
    wanted = {name: stored_name(name, layout) for name in head.state_dict()}
    if config.draft_vocab_size == config.vocab_size and "d2t" not in tensors:
        tensors["d2t"] = torch.zeros(config.vocab_size, dtype=torch.long)
    missing = sorted(set(wanted.values()) - set(tensors))
    surplus = sorted(set(tensors) - set(wanted.values()) - {"t2d"})
    for kind, names in (("lacks", missing), ("has a tensor that no head has:", surplus)):
        if names:
            raise ModelError(f"{folder}: the head {kind} {names[0]}")
    state = head.state_dict()
    for name, stored in wanted.items():
        if tensors[stored].shape != state[name].shape:
            raise ModelError(
                f"{folder}: {stored} is {list(tensors[stored].shape)}; "
                f"its config asks for {list(state[name].shape)}"
            )
        if tensors[stored].is_floating_point() != state[name].is_floating_point():
            raise ModelError(f"{folder}: {stored} is of {tensors[stored].dtype}")
    head.load_state_dict({name: tensors[stored] for name, stored in wanted.items()}, assign=True)
    tokens_M = head.tokens_of_rows()
    if int(tokens_M.min()) < 0 or int(tokens_M.max()) >= config.vocab_size:
        raise ModelError(f"{folder}: d2t leads outside the {config.vocab_size} tokens of the base")
    return head.to(tensors["fc.weight"].dtype).eval()


def read_config(
    document: Mapping[str, object], layout: Layout, tensors: Mapping[str, Tensor], num_blocks: int
) -> Eagle3Config:
    """What a published config says of its head."""
    layer = document["transformer_layer_config"] if layout == "speculators" else document
    if not isinstance(layer, Mapping):
        raise TypeError("transformer_layer_config is no object")
    refuse_unknown(document, layer, layout)
    hidden, heads = int(layer["hidden_size"]), int(layer["num_attention_heads"])
    rope = dict(layer.get("rope_parameters") or layer.get("rope_scaling") or {})
    rope.setdefault("rope_theta", float(layer.get("rope_theta") or 10_000.0))
    rope.setdefault("rope_type", rope.pop("type", "default"))
    types = layer.get("layer_types") or []
    slides = "sliding_attention" in types
    switches = {name: bool(document.get(name, False)) for name in SWITCHES}
    if layout == "speculators":
        switches["norm_before_residual"] = bool(document.get("norm_before_residual", True))
    vocab_size = int(layer["vocab_size"])
    return Eagle3Config(
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=int(layer.get("num_key_value_heads") or heads),
        head_dim=int(layer.get("head_dim") or hidden // heads),
        num_channels=int(layer["intermediate_size"]),
        vocab_size=vocab_size,
        draft_vocab_size=int(document.get("draft_vocab_size") or vocab_size),  # type: ignore[call-overload]
        taps=taps_of(document, layout, num_blocks),
        max_positions=int(layer["max_position_embeddings"]),
        rope=rope,
        epsilon=float(layer["rms_norm_eps"]),
        window=int(layer["sliding_window"]) if slides else None,
        own_embedding="embed_tokens.weight" in tensors,
        **switches,
    )


def refuse_unknown(
    document: Mapping[str, object], layer: Mapping[str, object], layout: Layout
) -> None:
    """Raise ModelError for what this reader would compute wrongly."""
    kind = document.get("speculators_model_type")
    named = document.get("architectures") or []
    if layout == "speculators" and kind != MODEL_TYPE:
        raise ModelError(f"the head is of the kind {kind!r}; only {MODEL_TYPE!r} is known")
    if layout == "flat" and ARCHITECTURE not in (named if isinstance(named, list) else []):
        raise ModelError(f"the head's architectures are {named}; only {ARCHITECTURE} is known")
    expected = {
        "model_type": ("llama",),
        "num_hidden_layers": (1,),
        "hidden_act": ("silu",),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
    }
    for key, allowed in expected.items():
        if key in layer and layer[key] not in allowed:
            raise ModelError(f"the head's {key} is {layer[key]!r}; it must be {allowed[0]!r}")


def taps_of(document: Mapping[str, object], layout: Layout, num_blocks: int) -> tuple[int, ...]:
    """After which blocks the head reads the base, whichever way its layout counts them."""
    nested = document.get("eagle_config")
    ids = document.get("eagle_aux_hidden_state_layer_ids")
    shift = 0
    if layout == "flat" and isinstance(nested, Mapping):
        ids, shift = nested.get("eagle_aux_hidden_state_layer_ids"), 1
    if not ids:
        return default_taps(num_blocks)
    if not isinstance(ids, list) or not all(isinstance(each, int) for each in ids):
        raise ModelError(f"eagle_aux_hidden_state_layer_ids is {ids!r}, not a list of numbers")
    taps = tuple(each + shift for each in ids)
    if min(taps) < 1 or max(taps) >= num_blocks:
        raise ModelError(
            f"eagle_aux_hidden_state_layer_ids {ids}: the base has {num_blocks} blocks, "
            f"so taps from 1 to {num_blocks - 1} are there"
        )
    return taps


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a head; pickles are refused."""
    path = folder / "model.safetensors"
    if not path.is_file():
        if (folder / "pytorch_model.bin").exists():
            raise ModelError(
                f"{folder} has pytorch_model.bin, a pickle, which is not read; convert it with "
                "safetensors' own `convert` or ask its publisher for safetensors"
            )
        raise ModelError(f"{path} is missing")
    read_header(path)
    with errors_explained(str(folder), "weights"):
        return load_file(path)
