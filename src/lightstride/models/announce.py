"""Lets transformers find the layered models when it first looks for a config, and not before.

Registering needs seven modeling files, which import transformers' Auto classes in turn: done when
those have just been imported it would be slow for everyone, and now and then a circle.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import TypeVar

from wrapt import wrap_function_wrapper

R = TypeVar("R")


def announce(configuration_auto: ModuleType) -> None:
    """Make AutoConfig register the layered models before it reads a config."""
    wrap_function_wrapper(configuration_auto, "AutoConfig.from_pretrained", register_first)


def register_first(
    wrapped: Callable[..., R],
    _class: object,
    args: tuple[object, ...],
    options: Mapping[str, object],
) -> R:
    """What `wrapped` answers, called after the layered models are registered."""
    import_module("lightstride.models.registration").register()
    return wrapped(*args, **options)
