"""Flags of `lightstride doctor`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from lightstride.config.base import Command, Device


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(Command):
    """Say on one screen what is installed, what the machine can do and what is kept."""

    example: ClassVar[str] = "lightstride doctor"

    model: Annotated[
        Positional[str | None], arg(metavar="[MODEL]", help_behavior_hint="(default: no model)")
    ] = None
    """A model to name by its hashes: a hub id, a folder, a .gguf file, or a built-in name."""
    device: Device = "auto"
    """What to measure; auto takes an accelerator if there is one."""
    trust_remote_code: bool = False
    """Allow Python files that come with the model to run."""
