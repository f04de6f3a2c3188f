"""Machines that are known by name: their assumed rates and sizes, from `machines.json`."""

import json
from dataclasses import dataclass
from importlib import resources

from lightstride.config.prune import MachineName
from lightstride.prune.forecast import Rates

MACHINES_FILE = "machines.json"


@dataclass(frozen=True, kw_only=True)
class KnownMachine:
    """A machine's rates and sizes."""

    title: str
    assumed: str
    """Where the rates come from."""
    rates: Rates
    disk: float
    """Bytes read a second."""
    memory: int
    device_memory: int
    """Bytes of each accelerator."""
    devices: int


def known_machine(name: MachineName) -> KnownMachine:
    """The machine of this name."""
    text = resources.files("lightstride.prune").joinpath(MACHINES_FILE).read_text("utf-8")
    entry = json.loads(text)[name]
    rates = Rates(**{key: entry[key] for key in ("forward", "gram", "solve")})
    return KnownMachine(
        title=entry["title"],
        assumed=entry["assumed"],
        rates=rates,
        disk=entry["disk"],
        memory=int(entry["memory"]),
        device_memory=int(entry["device_memory"]),
        devices=entry["devices"],
    )
