"""The loss of one packed batch for an EAGLE-3 head on a frozen base (`eagle3_loss.py`).

One forward of the base over the text gives the features of every place and, at its end, the
distributions to be learned, which repeated epochs may take from memory.  Shapes: B rows, L places,
T taps, D hidden size, M draft vocabulary, N chains, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lightstride.models.head_logits import head_logits
from lightstride.smash.data.packing import Batch
from lightstride.smash.model.eagle3 import Eagle3Head
from lightstride.smash.model.reading import BaseReader
from lightstride.smash.train.eagle3_loss import chain_states, counted_steps
from lightstride.smash.train.hidden_cache import HiddenStateCache
from lightstride.smash.train.loss import Stats, place_weights
from lightstride.training.losses import Loss, divergence
from lightstride.training.lowered import call_lowered


@dataclass(frozen=True, kw_only=True)
class HeadLearning:
    """How a head learns."""

    num_steps: int = 5
    """Steps of a chain."""
    loss: Loss = "kl"
    """Target of the base's distribution: all of it, or its likeliest token."""
    step_decay: float = 0.8
    """Each further step counts this much of the one before."""


class LoweredHeadLoss(nn.Module):
    """A head that answers with its loss; weights of fp32, those that do not learn among them, are
    computed with in another type."""

    def __init__(
        self,
        head: Eagle3Head,
        reader: BaseReader,
        learning: HeadLearning,
        dtype: torch.dtype,
        memory: HiddenStateCache | None = None,
    ) -> None:
        super().__init__()
        self.inner = HeadLoss(head, reader, learning, memory)
        self.dtype = dtype

    def forward(self, batch: Batch, merges: bool, own_cuts: bool, seed: str) -> Stats:
        """The sum of the losses; nothing is merged or drawn at random here."""
        still = {
            name: parameter.to(self.dtype)
            for name, parameter in self.inner.named_parameters()
            if not parameter.requires_grad
        }
        total = cast(Tensor, call_lowered(self.inner, self.dtype, batch, others=still))
        return {"loss": total}

    def base_weights(self) -> list[nn.Parameter]:
        """None: the base is frozen."""
        return []


class HeadLoss(nn.Module):
    """The loss itself, with weights as they are."""

    target_rows_MD: Tensor
    target_bias_M: Tensor | None
    is_draftable_V: Tensor

    def __init__(
        self,
        head: Eagle3Head,
        reader: BaseReader,
        learning: HeadLearning,
        memory: HiddenStateCache | None,
    ) -> None:
        super().__init__()
        self.head = head
        self.reader = reader
        self.learning = learning
        self.memory = memory
        output = reader.base.get_output_embeddings()
        tokens_M = head.tokens_of_rows()
        bias_M = None if output.bias is None else output.bias.detach()[tokens_M]
        is_draftable_V = torch.zeros(head.config.vocab_size, dtype=torch.bool)
        is_draftable_V[tokens_M.cpu()] = True
        self.register_buffer("target_rows_MD", output.weight.detach()[tokens_M], persistent=False)
        self.register_buffer("target_bias_M", bias_M, persistent=False)
        self.register_buffer("is_draftable_V", is_draftable_V.to(tokens_M.device), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """Sum over the steps and places of the answers."""
        taps_BLTD, last_BLD = read_taps(self.reader, batch, self.memory)
        states = chain_states(
            self.head,
            taps_BLTD,
            embedded(self.head, self.reader, batch),
            batch.documents_BL,
            self.learning.num_steps,
        )
        chosen = [self.places_of(batch, step) for step in range(len(states))]
        weights_J = place_weights(len(states), self.learning.step_decay).tolist()
        rows_N, targets_N = (torch.cat(each) for each in zip(*chosen, strict=True))
        student_ND = torch.cat(
            [
                self.head.normed(states_BLD[rows, targets - 1 - step])
                for step, (states_BLD, (rows, targets)) in enumerate(
                    zip(states, chosen, strict=True)
                )
            ]
        )
        weights_N = torch.cat(
            [
                torch.full((len(rows),), weight, device=student_ND.device)
                for weight, (rows, _) in zip(weights_J, chosen, strict=True)
            ]
        )
        # What predicts one token stands together: its distribution is then made once.
        order_N = (rows_N * batch.tokens_BL.shape[1] + targets_N).argsort(stable=True)
        total, _ = divergence(
            self.head.lm_head,
            student_ND[order_N],
            last_BLD[rows_N[order_N], targets_N[order_N]],
            weights_N[order_N],
            kind=self.learning.loss,
            teacher_head=self.base_logits,
        )
        return total

    def places_of(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Rows and places of the base's states that the chains' step is to agree with.

        They stand `step` + 1 places behind the chain's start, before an answer's token that the
        base expects and the head can draft.
        """
        counts_BL = counted_steps(batch.is_answer_BL, batch.documents_BL, step)
        rows_N, places_N = counts_BL.nonzero(as_tuple=True)
        targets_N = places_N + step + 1
        draftable_N = self.is_draftable_V[batch.greedy_BL[rows_N, targets_N + 1]]
        return rows_N[draftable_N], targets_N[draftable_N]

    def base_logits(self, hidden_ND: Tensor) -> Tensor:
        """The base's logits of the draft vocabulary, (N, M)."""
        outputs_NM = linear(hidden_ND, self.target_rows_MD, self.target_bias_M)
        return head_logits(self.reader.base.config, outputs_NM)


@torch.no_grad()
def read_taps(
    reader: BaseReader, batch: Batch, memory: HiddenStateCache | None = None
) -> tuple[Tensor, Tensor]:
    """The base's features (B, L, T, D) of unmerged text, and its last hidden states (B, L, D)."""
    hidden: Sequence[Tensor] = (
        reader.read_packed(batch.unmerged()) if memory is None else memory.states(batch)
    )
    return torch.stack([*hidden[:-1]], dim=-2), hidden[-1]


@torch.no_grad()
def embedded(head: Eagle3Head, reader: BaseReader, batch: Batch) -> Tensor:
    """Embeddings of the text, (B, L, D): the base's, or the head's own, which do not learn."""
    if head.embedding is None:
        return reader.embed(batch.tokens_BL)
    own = head.embedding(batch.tokens_BL)
    assert isinstance(own, Tensor)
    return own
