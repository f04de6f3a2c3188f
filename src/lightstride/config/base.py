"""Shared by the commands' configurations: kinds of flags, checks, the way to JSON and back.

A configuration is a frozen dataclass; the sentence under each field is the flag's help.  A field
that may come from a preset is None until `resolved` fills it in.
"""

import dataclasses
import json
from collections.abc import Mapping
from importlib import resources
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from tyro.conf import Positional, arg

from lightstride.config.values import problem
from lightstride.errors import ConfigError

Device = Literal["auto", "cpu", "cuda", "mps", "xpu"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]

Model = Annotated[Positional[str], arg(metavar="MODEL")]
"""A hub id, a local folder, a .gguf file, or a built-in name."""
OPTIONAL = "(optional)"
"""The help's hint at a flag that has no default worth naming."""
OptionalModel = Annotated[str | None, arg(metavar="MODEL", help_behavior_hint=OPTIONAL)]
Source = Annotated[str, arg(metavar="SOURCE")]
OptionalSource = Annotated[str | None, arg(metavar="SOURCE", help_behavior_hint=OPTIONAL)]
OptionalPath = Annotated[str | None, arg(metavar="PATH", help_behavior_hint=OPTIONAL)]
Output = Annotated[str, arg(aliases=("-o",), metavar="DIR")]
OptionalSize = Annotated[str | None, arg(metavar="SIZE", help_behavior_hint=OPTIONAL)]
PRESET = "(default: the preset's)"
FromPreset = Annotated[int | None, arg(metavar="N", help_behavior_hint=PRESET, constructor=int)]
"""A number that the preset gives unless a flag does."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Flags of every command."""

    example: ClassVar[str]
    """A command line that can be pasted; the help text ends with it."""

    json: bool = False
    """Print exactly one JSON document on stdout, and nothing else there."""

    def __post_init__(self) -> None:
        self.check_fields()

    def check_fields(self) -> None:
        """ConfigError for a number that is not finite or beyond all use, or for no model's name."""
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            wanted = problem(field.name, given)
            if wanted is not None:
                shown = " ".join(map(str, given if isinstance(given, tuple) else (given,)))
                flag = f"--{field.name.replace('_', '-')}"
                named = {"model": "MODEL", "models": "MODEL", "output": "-o"}.get(field.name, flag)
                require(False, named, shown or "''", wanted)

    def as_dict(self) -> dict[str, object]:
        """The fields, ready for JSON."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """Read back what `as_dict` gave; ConfigError on a key that is not a field."""
        hints = get_type_hints(cls)
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ConfigError(f"{cls.__name__} has no field {', '.join(map(repr, unknown))}")
        fields: dict[str, Any] = {
            k: tuple(v) if get_origin(hints[k]) is tuple and isinstance(v, list) else v
            for k, v in values.items()
        }
        return cls(**fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCommand(Command):
    """Flags of every command that opens a model."""

    device: Device = "auto"
    """Where to compute; auto takes an accelerator if there is one."""
    dtype: Precision = "auto"
    """Precision of the model's weights; auto takes what suits the command and the device."""
    trust_remote_code: bool = False
    """Allow Python files that come with the model to run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PresetCommand(ModelCommand):
    """Flags of a command that has presets."""

    command: ClassVar[str]
    preset_only: ClassVar[tuple[str, ...]] = ()
    """Values of a preset that no flag changes."""
    preset: Literal["demo", "fast", "paper"] = "fast"
    """How much to spend: demo takes minutes, paper follows the publication."""

    @property
    def left_open(self) -> tuple[str, ...]:
        """Fields that the preset does not fill in, since nothing asks for them."""
        return ()

    def resolved(self) -> Self:
        """The same configuration with what was left open taken from the preset."""
        presets = preset_table()[self.command][self.preset]
        unasked = (*self.preset_only, *self.left_open)
        fields = {k: v for k, v in presets.items() if k not in unasked}
        missing = {k: v for k, v in fields.items() if getattr(self, k) is None}
        return type(self).from_dict({**self.as_dict(), **missing})

    def preset_number(self, name: str) -> float:
        """A number of the preset that no flag changes."""
        value = preset_table()[self.command][self.preset][name]
        assert name in self.preset_only
        assert isinstance(value, float)
        return value


def preset_table() -> dict[str, dict[str, dict[str, object]]]:
    """Command -> preset -> field -> value, as in `presets.json`."""
    text = resources.files("lightstride.config").joinpath("presets.json").read_text("utf-8")
    table: dict[str, dict[str, dict[str, object]]] = json.loads(text)
    return table


def require(allowed: bool, flag: str, given: object, wanted: str) -> None:
    """Raise ConfigError unless the value of a flag is allowed."""
    if not allowed:
        raise ConfigError(f"{flag} {given} is not allowed: it must be {wanted}")


def require_choice(flag: str, given: str, choices: object) -> None:
    """Raise ConfigError unless the value is one of a Literal's."""
    allowed = get_args(choices)
    require(given in allowed, flag, repr(given), f"one of {', '.join(allowed)}")
