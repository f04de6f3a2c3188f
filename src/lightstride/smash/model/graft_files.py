"""Grafts on disk: their own weights and config, and the name of the base they belong to.

A folder holds `config.json`, `model.safetensors` with the grafts alone, and `lightstride.json` if
the caller adds one.  The base is not stored again: a base in a folder is named relative to this
one, so that both can be moved together.
"""

import math
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightstride.errors import ModelError
from lightstride.files import whole_file
from lightstride.files.read import read_json
from lightstride.models.opening.explain import errors_explained
from lightstride.models.opening.gate import read_header
from lightstride.models.opening.load import locate
from lightstride.smash.model.config import SmashConfig
from lightstride.smash.model.config_file import check_fields, of_today

WEIGHTS = "model.safetensors"
BASE = "base."
VOCABULARY = "micro_vocabulary_M"
MERGING = ("embedder.", "adapters.")
"""Weights that merge; grafts that only draft ignore them."""


def graft_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights that are not the base's."""
    return {
        name: tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith(BASE)
    }


def write_grafts(folder: Path, config: SmashConfig, state: Mapping[str, Tensor]) -> None:
    """Write config and grafts; each file is complete or not there."""
    with whole_file(folder / WEIGHTS) as partial:
        save_file(dict(state), partial, metadata={"format": "pt"})
    stored = SmashConfig(**{**config.to_dict(), "base": relative_base(config.base, folder)})
    stored.architectures = ["SmashModel"]
    stored.save_pretrained(folder)


def relative_base(base: str, folder: Path) -> str:
    """Name of the base to write: a path relative to the folder, or the name as it is."""
    path = Path(base).expanduser()
    return os.path.relpath(path.resolve(), folder.resolve()) if path.is_dir() else base


def read_config(source: str) -> SmashConfig:
    """The config of a smashed model; its base is named so that it can be opened from here."""
    place = locate(source)
    file = Path(place) / "config.json"
    if file.is_file():
        check_fields(of_today(read_json(file, dict[str, object], ModelError)), str(file))
    with errors_explained(source, "config"):
        config = SmashConfig.from_pretrained(place)
    assert isinstance(config, SmashConfig)
    beside = Path(place) / config.base
    if config.base and beside.is_dir():
        config.base = str(beside.resolve())
    return config


def check_room(source: str, config: SmashConfig) -> None:
    """Raise ModelError where the config asks for more than all grafts that are there."""
    path = Path(locate(source)) / WEIGHTS
    if not path.is_file():
        return
    there = sum(math.prod(tensor.shape) for tensor in read_header(path).values())
    width = config.micro_head_dim * (config.micro_heads + config.micro_kv_heads)
    micro = config.micro_layers * config.hidden_size * (3 * config.micro_channels + 2 * width)
    if micro > there:
        raise ModelError(
            f"the config of {source} asks for at least {micro:,} parameters of grafts; there are "
            f"{there:,}"
        )


def read_grafts(source: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The grafts of a smashed model; ModelError unless they are as the config describes them.

    What merged in grafts that only draft now is left out, with a line that says so.
    """
    with errors_explained(source, "weights"):
        stored = read_weights(locate(source))
    state = without_merging(stored, wanted)
    check_state(source, state, wanted)
    if len(state) < len(stored):
        sys.stderr.write(
            f"lightstride: {source} is of an earlier version: of its grafts the drafts are used, "
            "what merged tokens is not; for fewer KV entries see smash --kv\n"
        )
    return state


def without_merging(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without those that merge, where nothing that is wanted does."""
    merges = any(name.startswith(MERGING) for name in wanted)
    return {n: tensor for n, tensor in state.items() if merges or not n.startswith(MERGING)}


def read_weights(place: str) -> dict[str, Tensor]:
    """All that is stored in a folder or on the hub."""
    path = Path(place) / WEIGHTS
    if not Path(place).is_dir():
        path = Path(hf_hub_download(place, WEIGHTS))
    read_header(path)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def start_from_grafts(model: nn.Module, source: str, bases: Collection[str]) -> None:
    """Take weights over from grafts of the same sizes on one of these bases (by fingerprint).

    The micro vocabulary stays the model's own.
    """
    if read_config(source).base_fingerprint not in bases:
        raise ModelError(f"the grafts in {source} belong to another base; start from its own")
    own = graft_state(model)
    with errors_explained(source, "weights"):
        state = without_merging(read_weights(locate(source)), own)
    for each in (own, state):
        each.pop(VOCABULARY, None)
    check_state(source, state, own)
    for name, tensor in state.items():
        own[name].copy_(tensor)


def check_state(source: str, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise ModelError when grafts are missing, surplus, of other sizes, NaN or infinite."""
    problems = {
        "lack": sorted(set(wanted) - set(state)),
        "have, though the config says nothing of it,": sorted(set(state) - set(wanted)),
        "have in another size": sorted(
            name for name in set(state) & set(wanted) if state[name].shape != wanted[name].shape
        ),
        "have in another type": sorted(
            name
            for name in set(state) & set(wanted)
            if state[name].is_floating_point() != wanted[name].is_floating_point()
        ),
        "have with NaN or infinite values": sorted(
            name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())
        ),
    }
    for problem, names in problems.items():
        if names:
            raise ModelError(f"the grafts in {source} {problem} {names[0]} ({len(names)} in all)")
