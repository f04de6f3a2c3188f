"""How a decoder calls its blocks, learned by standing in for them, and its ends without blocks.

A model's own forward embeds tokens, makes masks and positions, calls its blocks and normalizes
the last one's outputs.  With stand-ins for the blocks it tells the arguments of each, and makes
logits of hidden states that were computed elsewhere: whatever a family does there is done.

Shapes: N windows of L tokens each, B of them in a batch, P positions, D hidden size, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightstride.models.activations import ActivationStore, Rows
from lightstride.models.families.adapter import Adapter
from lightstride.models.opening.source import WeightSource


@dataclass(frozen=True)
class Call:
    """Arguments of a block besides the hidden states."""

    args: tuple[object, ...]
    kwargs: dict[str, object]

    def to(self, device: torch.device) -> "Call":
        """The same, on a device."""
        return Call(send_to_device(self.args, device), send_to_device(self.kwargs, device))


class Recorder(nn.Module):
    """Stands in for a block: notes how it is called and hands the hidden states on."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_BLD = torch.empty(0)
        self.call = Call((), {})

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        self.hidden_BLD = hidden_states
        self.call = Call(args, kwargs)
        return hidden_states


@contextmanager
def recorders(model: PreTrainedModel, adapter: Adapter) -> Iterator[list[Recorder]]:
    """Inside, every block of the model is a recorder."""
    blocks = adapter.blocks(model)
    originals = list(blocks)
    stand_ins = [Recorder() for _ in originals]
    for index, stand_in in enumerate(stand_ins):
        blocks[index] = stand_in
    try:
        yield stand_ins
    finally:
        for index, block in enumerate(originals):
            blocks[index] = block


@contextmanager
def with_output(stand_in: Recorder, hidden_BLD: Tensor) -> Iterator[None]:
    """Inside, a stand-in answers these hidden states whatever it is given."""
    with stand_in.register_forward_hook(lambda *_: hidden_BLD):
        yield


def logits_at(
    model: PreTrainedModel,
    adapter: Adapter,
    tokens_BL: Tensor,
    hidden_BLD: Tensor,
    positions_P: Tensor,
    most: int,
) -> Iterator[Tensor]:
    """Logits (B', P', V) at these positions of all windows, at most about `most` of them at once.

    The model's own forward makes them, final norm and all, from what its last block answered.
    Slices run through the positions of a few windows, then of the next ones.
    """
    rows = max(1, most // len(positions_P))
    with recorders(model, adapter) as stand_ins:
        for tokens, hidden in zip(tokens_BL.split(rows), hidden_BLD.split(rows), strict=True):
            with with_output(stand_ins[-1], hidden):
                for some_P in positions_P.split(most):
                    output = model(tokens, use_cache=False, logits_to_keep=some_P)
                    yield output.logits


def embed(
    source: WeightSource,
    tokens_NL: Tensor,
    batches: Sequence[slice],
    shelf: ActivationStore,
) -> tuple[Rows, Mapping[int, Sequence[Call]]]:
    """Inputs of the first block (N, L, D), and the blocks' arguments for each batch size."""
    hidden_NLD: Rows | None = None
    calls: dict[int, Sequence[Call]] = {}
    decoder = source.adapter.decoder(source.model)
    with source.embedding(), recorders(source.model, source.adapter) as stand_ins:
        for windows in batches:
            tokens_BL = tokens_NL[windows].to(source.device)
            decoder(input_ids=tokens_BL, use_cache=False)
            hidden_BLD = stand_ins[0].hidden_BLD
            calls.setdefault(len(tokens_BL), [stand_in.call for stand_in in stand_ins])
            if hidden_NLD is None:
                shape = (*tokens_NL.shape, hidden_BLD.shape[-1])
                hidden_NLD = shelf.room(*shape, dtype=hidden_BLD.dtype)
            hidden_NLD[windows] = hidden_BLD
    assert hidden_NLD is not None
    return hidden_NLD, calls
