"""Healing: what a cut model keeps learns to say what the dense model says.

Optional, after the cut, and the only place of this room that goes backwards through the model.
The blocks' weights (not embedding, head and last norm) are trained on the calibration text to
the dense model's own next-token distributions, KL(dense | cut), with AdamW on fp32 copies.

Related: knowledge distillation (Hinton et al., 2015); Minitron (arXiv 2407.14679) heals pruned
models so, on billions of tokens.  Here one pass over the calibration text already helps.

Shapes: N windows, B windows of a step, L tokens, D hidden size.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from lightstride.distributed import rank, world_size
from lightstride.models.families.adapter import Adapter
from lightstride.training.checkpoint import Progress, TrainingFolder
from lightstride.training.losses import divergence
from lightstride.training.lowered import call_lowered
from lightstride.training.schedule import rate_at, set_rates

STATE_BYTES = 12
"""Bytes of an fp32 weight and the optimizer's two moments."""


@dataclass(frozen=True, kw_only=True)
class Healing:
    """How long and how fast to learn."""

    passes: int
    """Passes over the text."""
    learning_rate: float = 1e-4
    """Largest learning rate; it rises at first and falls by a cosine to nothing."""
    step_tokens: int = 512
    """Tokens of a step, over all processes."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    clip: float = 1.0
    """Largest norm of a gradient."""
    save_steps: int = 32
    """Steps between checkpoints."""
    seed: int = 0


class Student(nn.Module):
    """A cut model that answers with its loss; its blocks are fp32 and compute as they did."""

    def __init__(self, model: PreTrainedModel, adapter: Adapter) -> None:
        super().__init__()
        self.dtype = model.dtype
        self.head = [model.get_output_embeddings()]  # in a list: its weights stay as they are
        model.requires_grad_(False)
        self.blocks = adapter.blocks(model)
        own_copies(self.blocks)
        self.decoder = adapter.decoder(model)

    def forward(self, tokens_BL: Tensor, teacher_BLD: Tensor) -> Tensor:
        """Sum of KL(dense | cut) over all positions; the dense model's last hidden states."""
        output = call_lowered(self.decoder, self.dtype, input_ids=tokens_BL, use_cache=False)
        assert isinstance(output, BaseModelOutputWithPast)
        student_BLD = output.last_hidden_state
        assert student_BLD is not None
        weights_J = torch.ones(tokens_BL.numel(), device=student_BLD.device)
        loss, _ = divergence(
            self.head[0], student_BLD.flatten(0, 1), teacher_BLD.flatten(0, 1), weights_J
        )
        return loss

    def release(self) -> None:
        """Give the model its own type back; nothing learns any more."""
        self.blocks.to(self.dtype).requires_grad_(False)


def own_copies(blocks: nn.Module) -> None:
    """Give the blocks fp32 weights of their own: a cut model shares what it can with the dense."""
    for part in blocks.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(parameter.detach().float().clone()))


def heal(
    smaller: PreTrainedModel,
    dense: PreTrainedModel,
    adapter: Adapter,
    tokens_NL: Tensor,
    healing: Healing,
    folder: Path,
    *,
    title: str = "healing",
    progress: bool = False,
) -> Progress:
    """Train the blocks of `smaller`, in place, to answer like `dense`; how it went.

    Both models are on the device where to compute.  Goes on from the checkpoint in `folder`, to
    the same weights.  Takes `STATE_BYTES` a block parameter beside the models, and 4 for gradients.
    """
    student = Student(smaller, adapter)
    learned = [parameter for parameter in student.parameters() if parameter.requires_grad]
    rate = healing.learning_rate
    group = {"params": learned, "lr": rate, "peak": rate}
    optimizer = torch.optim.AdamW([group], betas=(0.9, 0.98), weight_decay=0.0)
    store = TrainingFolder(folder)
    at = store.load(student, optimizer)
    steps = steps_of(len(tokens_NL), max(1, healing.step_tokens // tokens_NL.shape[1]), healing)
    bar = tqdm(
        total=len(steps),
        initial=at.step,
        desc=title,
        unit="step",
        disable=not progress or rank() > 0,
    )
    with bar:
        for windows in steps[at.step :]:
            set_rates(optimizer, rate_at(at.step / len(steps), healing.warmup))
            tokens_BL = tokens_NL[windows].to(smaller.device)
            loss = take_step(student, dense, adapter, tokens_BL)
            nn.utils.clip_grad_norm_(learned, healing.clip)
            optimizer.step()
            optimizer.zero_grad()
            at.step += 1
            at.note({"loss": loss})
            bar.set_postfix(at.shown())
            bar.update()
            if at.step % healing.save_steps == 0:
                store.save(student, optimizer, at)
    student.release()
    return at


def steps_of(num_windows: int, windows_per_step: int, healing: Healing) -> list[list[int]]:
    """The windows of every step: each pass has every window once, in an order of its own."""
    found = []
    for number in range(healing.passes):
        order = list(range(num_windows))
        random.Random(f"{healing.seed}:{number}").shuffle(order)
        found += [
            order[start : start + windows_per_step]
            for start in range(0, num_windows, windows_per_step)
        ]
    return found


def take_step(
    student: Student, dense: PreTrainedModel, adapter: Adapter, tokens_BL: Tensor
) -> float:
    """Leave the gradient of the step's mean loss, summed over all processes, and answer it."""
    total = torch.zeros((), device=tokens_BL.device)
    mine_BL = tokens_BL[rank() :: world_size()]
    if len(mine_BL):
        with torch.no_grad():
            said = adapter.decoder(dense)(input_ids=mine_BL, use_cache=False)
        loss = student(mine_BL, said.last_hidden_state) / tokens_BL.numel()
        loss.backward()
        total = loss.detach()
    if world_size() > 1:
        torch.distributed.all_reduce(total)
        for parameter in student.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
    return float(total)
