"""transformers' models, imported without what only training, other kernels and other tasks need.

To import this is to import them.  It takes a third less processor time than usually, which is what
a server's start waits for: transformers finds no SciPy (it is for losses of object detection) and
no torch.distributed (DTensor brings SymPy with it), and marks nothing for torch's compiler (all of
which would be imported for its marks).  Where they have been imported already, nothing happens;
whoever imports SciPy or the compiler afterwards gets them.  Only for a process that serves: to
train on several processes, transformers has to find torch.distributed.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from unittest.mock import patch

import torch

MODELS = "transformers.modeling_utils"
COMPILER = "torch._dynamo"


def unmarked(function: object = None, *_: object, **__: object) -> object:
    """In place of a decorator, or of what gives one: the function as it is."""
    return unmarked if function is None else function


@contextmanager
def instead(name: str, module: ModuleType | None) -> Iterator[None]:
    """Something else under a module's name, None for nothing."""
    sys.modules[name] = module  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def without_compiler() -> Iterator[None]:
    """Meanwhile torch's compiler has its parts in the usual place, and marks without effect."""
    if COMPILER in sys.modules:
        yield
        return
    spec = find_spec("torch")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    compiler = ModuleType(COMPILER)
    compiler.__path__ = [f"{place}/_dynamo" for place in spec.submodule_search_locations]
    for mark in ("allow_in_graph", "assume_constant_result", "disable"):
        setattr(compiler, mark, unmarked)
    with instead(COMPILER, compiler), patch.dict(vars(torch), {"_dynamo": compiler}):
        yield


def import_models() -> None:
    """Import them, unless they have been."""
    if MODELS in sys.modules:
        return
    with ExitStack() as stack:
        if "scipy" not in sys.modules:
            stack.enter_context(instead("scipy", None))
        stack.enter_context(without_compiler())
        stack.enter_context(patch.object(torch.distributed, "is_available", lambda: False))
        import_module(MODELS)
        import_module("transformers.masking_utils")


import_models()
