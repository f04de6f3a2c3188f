"""A forward that is given up between two of its layers, because somebody came who is to go first.

What it wrote is scratch that nobody counts, so nothing has to be undone; its time is lost.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from lightstride.generate.session import Interrupt
from lightstride.models.families.registry import adapter_for


class GivenUpError(Exception):
    """A forward ended before its last layer."""


@contextmanager
def giving_way(model: PreTrainedModel, interrupt: Interrupt | None) -> Iterator[None]:
    """Inside this context forwards raise GivenUpError before the layer at which they are told to;
    None: they run to their ends."""
    if interrupt is None:
        yield
        return

    def check(*_: object) -> None:
        if interrupt():
            raise GivenUpError

    blocks = adapter_for(model.config).blocks(model)
    handles = [block.register_forward_pre_hook(check) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
