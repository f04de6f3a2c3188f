"""Lets transformers find the smashed model when it first looks for a config, and not before."""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import TypeVar

from wrapt import wrap_function_wrapper

R = TypeVar("R")


def announce(configuration_auto: ModuleType) -> None:
    """Make AutoConfig know the smashed model before it reads a config."""
    wrap_function_wrapper(configuration_auto, "AutoConfig.from_pretrained", import_first)


def import_first(
    wrapped: Callable[..., R],
    _class: object,
    args: tuple[object, ...],
    options: Mapping[str, object],
) -> R:
    """What `wrapped` answers, called after the smashed model has registered itself."""
    import_module("lightstride.smash.model")
    return wrapped(*args, **options)
