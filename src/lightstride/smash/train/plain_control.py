"""The control: the base itself, trained on the same answers a token at a time.

Where the base learns too, some of what a smashed model gains or loses is plain fine-tuning.  A copy
of the base sees the same batches in the same order, as many steps, at the same rates, with cross
entropy on the answers; both are then judged by the likelihood of held-out answers.

Shapes: B rows, L tokens, N answer tokens, D hidden size, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from lightstride.smash.data.examples import Example
from lightstride.smash.data.packing import Batch, make_batch, pack_documents
from lightstride.smash.model.body import SmashBody
from lightstride.smash.train.loss import Stats
from lightstride.smash.train.teacher_forced import find_starts, tokens_at
from lightstride.training.losses import SLICE_BYTES, in_slices
from lightstride.training.lowered import call_lowered


class LoweredPlainLoss(nn.Module):
    """A base that answers with the cross entropy of its answers."""

    def __init__(self, reader: SmashBody, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = PlainLoss(reader)
        self.dtype = dtype

    def forward(self, batch: Batch, merges: bool, own_cuts: bool, seed: str) -> Stats:
        """The sum of the losses; merging and the seed change nothing here."""
        total = call_lowered(self.inner, self.dtype, batch)
        assert isinstance(total, Tensor)
        return {"loss": total}

    def base_weights(self) -> list[nn.Parameter]:
        """All that learns."""
        return list(self.inner.reader.base.parameters())


class PlainLoss(nn.Module):
    """The loss itself, with weights as they are."""

    def __init__(self, reader: SmashBody) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, batch: Batch) -> Tensor:
        """Sum of the negative log-likelihoods of all answer tokens."""
        unmerged = batch.unmerged()
        starts = find_starts(unmerged, batch.documents_BL, 1)
        hidden_BLD = self.reader.read_packed(unmerged)[-1]
        tokens_N = tokens_at(batch.tokens_BL, starts)[:, 0]
        hidden_ND = hidden_BLD[starts.rows_N, starts.slots_N]
        step = max(1, SLICE_BYTES // (4 * self.reader.config.vocab_size))

        def loss(hidden_RD: Tensor, rows: slice) -> Tensor:
            logits_RV = self.reader.base_logits(hidden_RD).float()
            return cross_entropy(logits_RV, tokens_N[rows], reduction="sum")

        head = self.reader.get_output_embeddings()
        return in_slices(loss, hidden_ND, step, tuple(head.parameters()))


@torch.no_grad()
def answer_nats(reader: SmashBody, examples: Sequence[Example], row_tokens: int) -> float:
    """Mean negative log-likelihood of answer tokens, in nats, nothing merged."""
    loss = PlainLoss(reader)
    sizes = [len(each.prompt_P) + len(each.answer_A) for each in examples]
    total, tokens = 0.0, 0
    for plan in pack_documents(range(len(examples)), sizes, row_tokens=row_tokens, num_rows=2):
        batch = make_batch([[examples[d] for d in row] for row in plan], reader.device)
        total += float(loss(batch))
        tokens += batch.num_answer_tokens
    return total / tokens


def reader_of(base: PreTrainedModel, like: SmashBody) -> SmashBody:
    """Another base in the place of a smashed model's: it reads rows the same way."""
    return type(like)(like.config, base)
