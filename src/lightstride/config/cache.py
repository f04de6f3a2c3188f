"""Flags of `lightstride cache`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from tyro.conf import arg

from lightstride.config.base import Command, require


@dataclass(frozen=True, kw_only=True)
class CacheConfig(Command):
    """List the converted copies of models that are kept, or delete them."""

    example: ClassVar[str] = "lightstride cache --verify"

    clear: Annotated[
        tuple[str, ...] | None, arg(metavar="[NAME ...]", help_behavior_hint="(default: no)")
    ] = None
    """Delete the copies of these names; without a name, all of them."""
    verify: bool = False
    """Read all copies again and compare their hashes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        alone = self.clear is None or not self.verify
        require(alone, "--verify", "with --clear", "used without --clear")
