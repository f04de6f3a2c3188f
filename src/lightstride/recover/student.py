"""Which weights of a cut model learn, and its loss on rows of text.

All of the blocks' weights, or low-rank updates of their matrices that are merged at the end;
with all of them also the norms, and if wanted the head.  Weights keep the model's type: their fp32
masters are the optimizer's.

Shapes: B rows, L tokens, N = B * L positions, D hidden size; O outputs, I inputs, R rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from lightstride.models.families.adapter import Adapter
from lightstride.models.head_logits import head_inputs
from lightstride.recover.activations import activation_bytes, checkpoint_blocks, release_blocks
from lightstride.recover.attention import plain_products
from lightstride.recover.losses import top_k_loss
from lightstride.training.fsdp import local
from lightstride.training.top_k_kl import Teacher


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What learns."""

    rank: int = 0
    """Rank of the updates; 0 is whole weights."""
    norms: bool = True
    """Whether the blocks' norms and biases learn too; not with a rank."""
    head: bool = False
    """Whether the head learns, and with it the embedding where they are one."""
    checkpoint_activations: bool = False
    """Whether blocks keep their inputs alone, and compute the rest again in the backward."""


class LowRank(nn.Module):
    """A matrix and an update of low rank; at first the update is zero."""

    def __init__(self, weight_OI: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        down_RI = torch.randn(rank, weight_OI.shape[1], generator=generator)
        self.down_RI = nn.Parameter(
            (down_RI / weight_OI.shape[1] ** 0.5).to(weight_OI.device, weight_OI.dtype)
        )
        self.up_OR = nn.Parameter(weight_OI.new_zeros(weight_OI.shape[0], rank))

    def forward(self, weight_OI: Tensor) -> Tensor:
        """The sum of both, (O, I)."""
        return weight_OI + self.up_OR @ self.down_RI


class Student(nn.Module):
    """A cut model that answers with its loss."""

    def __init__(self, model: PreTrainedModel, adapter: Adapter, learning: Learning) -> None:
        super().__init__()
        model.requires_grad_(False)
        self.config = model.config
        self.decoder = adapter.decoder(model)
        self.head = [model.get_output_embeddings()]  # in a list: it is the decoder's where tied
        blocks = adapter.blocks(model)
        self.blocks = tuple(blocks)  # the decoder's: no modules of their own
        if learning.rank:
            generator = torch.Generator().manual_seed(0)
            for linear in matrices(blocks):
                linear.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
                update = LowRank(linear.weight, learning.rank, generator)
                parametrize.register_parametrization(linear, "weight", update)
        else:
            own_copies(blocks, learning)
        if learning.head:
            self.learned_head = self.head[0]
            self.learned_head.weight.requires_grad_(True)
        self.checkpoints = learning.checkpoint_activations
        if self.checkpoints:
            checkpoint_blocks(self.blocks, model.config)

    def learned(self) -> list[nn.Parameter]:
        """The weights that learn."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @property
    def gradient_bytes(self) -> int:
        """Memory of all gradients."""
        return sum(local(parameter).nbytes for parameter in self.learned())

    def activation_bytes(self, tokens_1L: Tensor) -> int:
        """Memory that blocks keep for the backward of a row; one is read to know."""
        release_blocks(self.blocks)
        inputs, whole = activation_bytes(partial(self.hidden, tokens_1L), self.decoder, self.blocks)
        if not self.checkpoints:
            return sum(whole)
        checkpoint_blocks(self.blocks, self.config)
        return sum(inputs) + max(whole)

    def hidden(self, tokens_BL: Tensor) -> Tensor:
        """The decoder's answers, (B, L, D)."""
        with plain_products(self.config, tokens_BL.device, tokens_BL.shape[1]):
            found = self.decoder(input_ids=tokens_BL, use_cache=False).last_hidden_state
        assert isinstance(found, Tensor)
        return found

    def forward(self, tokens_BL: Tensor, said: Teacher, weights_BL: Tensor) -> Tensor:
        """Weighted sum of KL(teacher | student) over all positions; the teacher has N of them."""
        hidden_BLD = head_inputs(self.config, self.hidden(tokens_BL))
        hidden_ND, weights_N = hidden_BLD.flatten(0, 1), weights_BL.flatten()
        counts_N = weights_N != 0
        if not bool(counts_N.all()):  # no logits where nothing counts
            hidden_ND, said, weights_N = (
                hidden_ND[counts_N],
                said.rows(counts_N),
                weights_N[counts_N],
            )
        return top_k_loss(self.head[0], hidden_ND, said, weights_N)

    def take_part(self, tokens_1L: Tensor) -> None:
        """A forward and a backward, of a zero gradient, that other processes wait for."""
        (0 * self.hidden(tokens_1L).float().sum()).backward()

    def release(self) -> None:
        """Merge updates into their matrices; nothing learns any more."""
        for linear in matrices(self.decoder):
            if parametrize.is_parametrized(linear, "weight"):
                parametrize.remove_parametrizations(linear, "weight")
        release_blocks(self.blocks)
        self.requires_grad_(False)


def matrices(module: nn.Module) -> Iterator[nn.Linear]:
    """The linear layers inside a module."""
    yield from [part for part in module.modules() if isinstance(part, nn.Linear)]


def own_copies(blocks: nn.Module, learning: Learning) -> None:
    """Give the blocks weights of their own, to learn: a cut model shares what it can."""
    for part in blocks.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            learns = learning.norms or parameter.dim() > 1
            copy = parameter.detach().clone(memory_format=torch.contiguous_format)
            setattr(part, name, nn.Parameter(copy, requires_grad=learns))
