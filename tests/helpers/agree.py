"""Comparisons that hold on any processor: equal weights, close logits, greedy answers but for ties.

Products of different shapes round differently, and how differently depends on the processor and
on the number of threads.  Only the very same computation, run twice, is compared to the bit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightstride.generate import Hooks, PlainDecoder, Settings
from lightstride.smash.decode.decoder import SmashDecoder

TIE = 5e-5
"""A lead in logits below which two tokens are equally likely; toys in fp32 round by 8e-6."""


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    """The same names, and under each the same bits."""
    ones, others = found.state_dict(), expected.state_dict()
    assert ones.keys() == others.keys()
    for name, tensor in ones.items():
        assert torch.equal(tensor, others[name]), name


def assert_close_logits(found: Tensor, expected: Tensor) -> None:
    """Logits of one model, computed in two ways."""
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def assert_same_greedy(
    model: PreTrainedModel,
    prompt: Sequence[int],
    found: Sequence[int],
    expected: Sequence[int],
    tie: float = TIE,
) -> None:
    """Greedy answers of a model: equal, or parted where the likeliest leads by less than `tie`.

    What comes after such a place is not compared.
    """
    pairs = list(zip(found, expected, strict=False))
    place = next((index for index, (one, other) in enumerate(pairs) if one != other), None)
    if place is None:
        assert len(found) == len(expected)
        return
    tokens = torch.tensor([[*prompt, *expected[:place]]], device=model.device)
    logits_V = model(tokens).logits[0, -1]
    lead = float(logits_V.max() - logits_V[list(pairs[place])].min())
    assert lead < tie, f"token {place} is {pairs[place]}; the likelier leads by {lead:.3g}"


def assert_no_ties(
    decoder: PlainDecoder | SmashDecoder, prompts: Sequence[Sequence[int]], settings: Settings
) -> None:
    """Every likeliest token of these greedy answers leads by far, whatever rounds differently."""
    leads = []

    def note(_tokens: object, logits_V: Tensor) -> Tensor:
        first, second = logits_V.topk(2).values
        leads.append(float(first - second))
        return logits_V

    for _ in decoder.steps(prompts, settings, Hooks(note)):
        pass
    assert min(leads) > TIE, f"two tokens are {min(leads):.2g} apart: take other prompts"
