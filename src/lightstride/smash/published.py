"""Opens the checkpoint that the authors of HAMburger published, once it is in safetensors.

Theirs is a PyTorch Lightning file, a pickle, which is never read here; its `state_dict` holds the
whole fine-tuned base and the new modules under the names of its Python attributes.  Sizes are read
from the tensors; what the published code fixes is fixed here too: 64 heads in the embedder, no norm
after the micro decoder, features at quarters of the depth.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.errors import ModelError
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.explain import errors_explained
from lightstride.models.opening.gate import read_header
from lightstride.smash.hub import SmashModel
from lightstride.smash.model.config import SmashConfig
from lightstride.smash.model.graft_files import check_state, graft_state

BASE = "model."
SHARED = ("comp_embedder.embedding.weight",)
"""Second copies of base weights."""
NAMES: Mapping[str, str] = {
    "comp_embedder.merger.pos": "embedder.positions",
    "comp_embedder.merger.q_proj": "embedder.query",
    "comp_embedder.merger.k_proj": "embedder.key",
    "comp_embedder.merger.v_proj": "embedder.value",
    "comp_embedder.out_proj": "embedder.output",
    "micro_step_decoder.stop_head": "stop",
    "micro_step_decoder.decoders": "micro.layers",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Parts of the published names, and what they are called here."""


def open_published(path: str | Path, base: PreTrainedModel) -> SmashModel:
    """The published model; `base`, of the same sizes, takes over the weights in the file."""
    state = read_state(Path(path))
    base_state, grafts = base_and_grafts(state)
    check_state(str(path), base_state, expected_base(base, base_state))
    base.load_state_dict(base_state, strict=False)
    geometry = adapter_for(base.config).geometry(base.config)
    positions = grafts.get("embedder.positions")
    if positions is None:
        raise ModelError(f"{path} has no comp_embedder.merger.pos: it is no HAMburger checkpoint")
    config = SmashConfig.paper(base.config, geometry, max_segment=len(positions))
    layers = [re.match(r"micro\.layers\.(\d+)\.", name) for name in grafts]
    config.micro_layers = 1 + max((int(found[1]) for found in layers if found), default=0)
    model = SmashModel.graft(base, config)
    check_state(str(path), grafts, graft_state(model))
    model.load_state_dict(grafts, strict=False)
    return model


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of the file by their published names."""
    if path.suffix != ".safetensors":
        raise ModelError(
            f"{path} is not in safetensors and is not read; convert it: {convert(path)}"
        )
    with errors_explained(str(path), "weights"):
        read_header(path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def convert(path: Path) -> str:
    """A command that writes the tensors of a Lightning file as safetensors."""
    return (
        "python -c 'import torch, safetensors.torch as s; "
        f'state = torch.load("{path}", weights_only=True)["state_dict"]; '
        "s.save_file({name: tensor.clone() for name, tensor in state.items()}, "
        f'"{path.with_suffix(".safetensors")}")\''
    )


def base_and_grafts(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The base's weights by transformers' names, and the grafts by ours."""
    base: dict[str, Tensor] = {}
    grafts: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in SHARED or name.endswith("rotary_emb.inv_freq"):
            continue
        if name.startswith(BASE):
            base[name.removeprefix(BASE)] = tensor
        else:
            grafts[our_name(name)] = tensor
    return base, grafts


def our_name(name: str) -> str:
    """Our name for a published one."""
    for theirs, ours in NAMES.items():
        name = re.sub(rf"(^|\.){re.escape(theirs)}(?=\.|$)", rf"\g<1>{ours}", name)
    return name


def expected_base(base: PreTrainedModel, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base's weights; a tied head need not be in the file."""
    return {
        name: tensor
        for name, tensor in base.state_dict().items()
        if name in given or not (base.config.tie_word_embeddings and name == "lm_head.weight")
    }
