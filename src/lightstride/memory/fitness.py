"""How far a model with a memory plan is from the same model with the full cache.

    KL = sum_v p_v (log p_v - log q_v),   p: full cache, q: the plan,

at every judged token of a text, teacher-forced.  All tokens before it are subject to the plan.

Shapes: T tokens, N judged tokens, S of them in a slice, D hidden size, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from lightstride.memory.masked import masked_hidden
from lightstride.memory.plan import MemoryPlan
from lightstride.memory.scores import Scores
from lightstride.models.sliced_logits import answering, slice_rows

TARGETS: Mapping[str, float] = {"copy": 2.0, "lookup": 2.0}
"""Domains where so many times the loss of the others is as good; the others have 1."""


@dataclass(frozen=True)
class Text:
    """A text that wants memory, and where what is judged begins."""

    domain: str
    tokens: tuple[int, ...]
    start: int
    """The first judged token; the tokens before it are given."""

    def as_dict(self) -> dict[str, str | int | list[int]]:
        """The text, ready for JSON."""
        return {"domain": self.domain, "tokens": list(self.tokens), "start": self.start}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read back what `as_dict` gave."""
        return cls(values["domain"], tuple(values["tokens"]), values["start"])


@dataclass(frozen=True)
class Fidelity:
    """What a plan does to every judged token of a text."""

    kl_N: Tensor
    """Divergence at each, in nats."""
    same_N: Tensor
    """Whether the likeliest token is the full cache's."""
    right_N: Tensor
    """Whether the likeliest token is the text's own."""
    right_full_N: Tensor
    """The same of the full cache."""


class Judge:
    """Compares plans with the full cache on some texts; the full cache is read once."""

    def __init__(
        self,
        model: PreTrainedModel,
        texts: Sequence[Text],
        full: MemoryPlan,
        scores: Scores | None = None,
    ) -> None:
        self.model = model
        self.scores = scores
        self.texts = tuple(texts)
        self.reference = [self.hidden(text, full) for text in self.texts]

    def hidden(self, text: Text, plan: MemoryPlan) -> Tensor:
        """Hidden states that predict the judged tokens, shape (N, D)."""
        tokens_T = torch.tensor(text.tokens, device=self.model.device)
        return masked_hidden(self.model, tokens_T, plan, self.scores)[text.start - 1 : -1]

    def fidelity(self, plan: MemoryPlan, index: int) -> Fidelity:
        """What the plan does to one text."""
        return self.compare(self.hidden(self.texts[index], plan), index)

    def loss(self, plan: MemoryPlan, indices: Sequence[int] | None = None) -> float:
        """Mean divergence over texts, those that tolerate more counted less; in nats."""
        chosen = range(len(self.texts)) if indices is None else indices
        losses = [
            float(self.fidelity(plan, index).kl_N.mean())
            / TARGETS.get(self.texts[index].domain, 1.0)
            for index in chosen
        ]
        return sum(losses) / len(losses)

    @torch.inference_mode()
    def compare(
        self, hidden_ND: Tensor, index: int, other: PreTrainedModel | None = None
    ) -> Fidelity:
        """Hidden states of one text against those of the full cache.

        Where another model has them, its head turns them into logits.
        """
        text, model = self.texts[index], self.model
        said_N = torch.tensor(text.tokens[text.start :], device=model.device)
        parts = []
        rows = slice_rows(model)
        for here_SD, there_SD, said_S in zip(
            hidden_ND.split(rows),
            self.reference[index].split(rows),
            said_N.split(rows),
            strict=True,
        ):
            ours_SV = logits_of(other or model, here_SD).float().log_softmax(-1)
            full_SV = logits_of(model, there_SD).float().log_softmax(-1)
            kl_S = (full_SV.exp() * (full_SV - ours_SV)).sum(-1)
            best_S, full_S = ours_SV.argmax(-1), full_SV.argmax(-1)
            parts.append((kl_S, best_S == full_S, best_S == said_S, full_S == said_S))
        return Fidelity(*(torch.cat(each).cpu() for each in zip(*parts, strict=True)))


def logits_of(model: PreTrainedModel, hidden_SD: Tensor) -> Tensor:
    """Logits by the model's own forward, scaling and capping included, shape (S, V)."""
    answer = BaseModelOutputWithPast(last_hidden_state=hidden_SD[None])
    stand_in_1S = torch.zeros((1, len(hidden_SD)), dtype=torch.long, device=hidden_SD.device)
    with answering(model.get_decoder(), answer):
        logits_1SV = model(stand_in_1S, use_cache=False).logits
    assert isinstance(logits_1SV, Tensor)
    return logits_1SV[0]
