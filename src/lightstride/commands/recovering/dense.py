"""The dense model of a recovery: in memory, or block by block where `--memory` has no room for it.

What is there at once, in every process, beside the program:

    always     the cut model, its blocks a second time (they are copied to learn), the optimizer's
               numbers, and what the dense model said of T tokens that are not learned from yet,
               T (6 k + 4) bytes; of a step's bytes what the allocator keeps when they are free
    a step     gradients, activations of its rows; some logits, and the head as their product
               packs it
    a reading  two of the dense model's blocks and what one computes of a row of L tokens, with
               attention's probabilities, H L^2 b bytes; or its embedding or head, with logits as
               above; and hidden states of T tokens, T D b bytes
    a look     what a block of the cut model computes of a few windows, and logits as above

so that of a step, a reading and a look the largest counts.  With the dense model in memory it is
there always, and nothing is said ahead.

Shapes: D hidden size, H query heads, k tokens that are told apart, b bytes of a weight.
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from lightstride.commands.evaluating.streamed import widest
from lightstride.commands.recovering.watch import WINDOWS
from lightstride.config import RecoverConfig
from lightstride.config.values import parse_size, size_text
from lightstride.distributed import world_size
from lightstride.errors import ConfigError
from lightstride.models.families.registry import adapter_for
from lightstride.models.fingerprint import fingerprint
from lightstride.models.opening.load import load_model
from lightstride.models.opening.skeleton import load_skeleton
from lightstride.models.opening.source import WeightSource
from lightstride.models.opening.streamed import open_streamed
from lightstride.models.shapes import Geometry
from lightstride.prune.devices import weight_bytes
from lightstride.prune.footprint import PROGRAM_BYTES
from lightstride.prune.ways import block_bytes, end_bytes
from lightstride.recover.attention import PIECE
from lightstride.recover.loop import Memory, Recovery, Rows, needed, rows_of_a_step
from lightstride.recover.losses import PRODUCT_ROWS
from lightstride.recover.student import Learning
from lightstride.training.fsdp import is_asked_for
from lightstride.training.top_k_kl import Teacher

KEPT_SHARE = 0.1
"""Of a step's bytes, what stays with the allocator: pieces of freed memory that nothing fits."""
FIRST_BYTES = 512 << 20
"""Of what a first forward, backward and look leave: kernels that were made for them, threads, and
pieces of freed memory too."""


@dataclass(frozen=True)
class Room:
    """Bytes of one process, counted before the dense model is opened."""

    always: int
    step: int
    reading: int
    look: int
    whole: int
    """Of the dense model."""
    waiting: int
    """Of a token that is said ahead."""
    passing: int
    """Of a token that passes the blocks, beside that."""

    @property
    def resident(self) -> int:
        """With the dense model in memory."""
        return self.always + self.whole + max(self.step, self.look)

    def streamed(self, tokens: int) -> int:
        """With so many tokens at once past its blocks."""
        most = max(self.step, self.look, self.reading + tokens * self.passing)
        return self.always + tokens * self.waiting + most

    def tokens(self, limit: int) -> int:
        """The most tokens at once within a limit."""
        held = (limit - self.always - max(self.step, self.look)) // self.waiting
        passed = (limit - self.always - self.reading) // (self.waiting + self.passing)
        return min(held, passed)


def check_ways(config: RecoverConfig) -> None:
    """ConfigError where `--memory` is given and the weights are shared out."""
    if config.memory is not None and is_asked_for():
        raise ConfigError(
            f"--memory {config.memory} has every process read the dense model block by block, and "
            "--use_fsdp shares its blocks out; leave one of them out"
        )


def tokens_together(
    config: RecoverConfig,
    smaller: PreTrainedModel,
    teacher: str,
    rows: Rows,
    recovery: Recovery,
    learning: Learning,
) -> int | None:
    """Tokens that pass the dense model's blocks together; None where it is opened whole.

    ConfigError where memory is too little for the rows of a step.
    """
    if config.memory is None:
        return None
    limit = parse_size("--memory", config.memory)
    dense = load_skeleton(teacher, dtype=smaller.dtype, trust_remote_code=config.trust_remote_code)
    memory = needed(smaller, adapter_for(smaller.config), rows, recovery, learning)
    room = room_of(smaller, dense, memory, rows.tokens_NL.shape[1], recovery.top_k)
    if room.resident <= limit:
        return None
    length = rows.tokens_NL.shape[1]
    least = length * -(-rows_of_a_step(length, recovery) // world_size())
    found = room.tokens(limit)
    if found < least:
        most = size_text(min(room.resident, room.streamed(least)))
        raise ConfigError(
            f"--memory {config.memory} is too little for this run: the least that works is {most}"
        )
    return max(least, min(found, recovery.ahead_tokens))


def room_of(
    smaller: PreTrainedModel, dense: PreTrainedModel, memory: Memory, length: int, top_k: int
) -> Room:
    """What a process takes; rows are of this length."""
    ours, theirs = (adapter_for(model.config).geometry(model.config) for model in (smaller, dense))
    itemsize = dense.dtype.itemsize
    end = end_bytes(theirs, itemsize)
    logits = 4 * PRODUCT_ROWS * theirs.vocab_size + end
    heads = max(shape.num_kv_heads * shape.queries_per_group for shape in theirs.attention)
    scores = heads * length * (length + PIECE) * itemsize
    blocks = 2 * block_bytes(theirs, itemsize) + computed(theirs, length, itemsize) + scores
    own_blocks = adapter_for(smaller.config).blocks(smaller)
    copied = sum(weight.nbytes for weight in own_blocks.parameters())
    step = memory.gradients + memory.activations + logits
    beside = PROGRAM_BYTES + FIRST_BYTES + int(KEPT_SHARE * step)
    return Room(
        always=beside + weight_bytes(smaller) + copied + memory.optimizer,
        step=step,
        reading=max(blocks, end + logits),
        look=computed(ours, WINDOWS * length, itemsize) + logits,
        whole=weight_bytes(dense),
        waiting=Teacher.bytes_per_position(top_k),
        passing=theirs.hidden_size * itemsize,
    )


def computed(geometry: Geometry, tokens: int, itemsize: int) -> int:
    """What a block has in memory of so many tokens, without a backward."""
    return tokens * (4 * geometry.hidden_size + widest(geometry)) * itemsize


def open_dense(
    config: RecoverConfig, teacher: str, dtype: torch.dtype, device: str, tokens: int | None
) -> PreTrainedModel | WeightSource:
    """The dense model, whole unless so many tokens pass its blocks together."""
    trusted = config.trust_remote_code
    if tokens is None:
        return load_model(teacher, dtype=dtype, device=device, trust_remote_code=trusted)
    return open_streamed(teacher, dtype=dtype, device=device, trust_remote_code=trusted)


def weights_hash(dense: PreTrainedModel | WeightSource) -> str:
    """Its fingerprint, the same whichever way it is opened."""
    return dense.fingerprint() if isinstance(dense, WeightSource) else fingerprint(dense)
