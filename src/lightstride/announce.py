"""Lets transformers find our models when it first looks for a config, and not before.

Registration imports the modeling files, which import transformers' Auto classes.  Doing it while
those are being imported is slow and can be circular, so it waits for the first `from_pretrained`.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import TypeVar

from wrapt import wrap_function_wrapper

R = TypeVar("R")


def announce(configuration_auto: ModuleType) -> None:
    """Make AutoConfig know our models before it reads a config."""
    wrap_function_wrapper(configuration_auto, "AutoConfig.from_pretrained", register_first)


def register_first(
    wrapped: Callable[..., R],
    _class: object,
    args: tuple[object, ...],
    options: Mapping[str, object],
) -> R:
    """The result of `wrapped`, called after uneven and smashed models are registered."""
    import_module("lightstride.models.uneven.register").register()
    import_module("lightstride.smash.hub")
    return wrapped(*args, **options)
