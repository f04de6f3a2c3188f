"""A recovery of a toy in one process or in several, which may share the weights out."""

import contextlib
import os
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

from helpers.healing import WINDOWS, cut
from helpers.processes import run_ranks
from helpers.toys import tiny_llama
from lightstride import distributed
from lightstride.commands.recover import recover as recover_command
from lightstride.config import RecoverConfig
from lightstride.models.families.registry import adapter_for
from lightstride.recover import loop
from lightstride.recover.loop import OptimizerName, Recovery, Rows, gradients, recover
from lightstride.recover.student import Learning

ROWS = Rows.alike(WINDOWS[:11])  # the last step of a pass has a row less than processes


def recover_here(folder: Path, optimizer: OptimizerName, learning: Learning, shares: bool) -> None:
    """Recover the toy in this process."""
    dense = tiny_llama(num_layers=2)
    smaller = cut(dense)
    quick = Recovery(
        passes=2, learning_rate=3e-3, step_tokens=48, save_minutes=0.0, optimizer=optimizer
    )
    recover(
        smaller,
        cut_free(dense),
        adapter_for(dense.config),
        ROWS,
        quick,
        folder / "work",
        learning=learning,
        shared_on=torch.device("cpu") if shares else None,
    )
    if distributed.rank() == 0:
        weights = {name: tensor.clone() for name, tensor in smaller.state_dict().items()}
        save_file(weights, folder / "weights.safetensors")


def cut_free(dense: torch.nn.Module) -> torch.nn.Module:
    """A dense model of its own, which a cut one has no weights of."""
    found = tiny_llama(num_layers=2)
    found.load_state_dict(dense.state_dict())
    return found


def work(folder: Path, optimizer: OptimizerName, learning: Learning, stops: bool) -> None:
    """What one of several processes does: it is stopped once, if it shall be, and goes on."""
    distributed.init()
    calls = 0

    def stopped(*arguments: object) -> float:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise InterruptedError
        return gradients(*arguments)  # type: ignore[arg-type]

    if stops:
        with mock.patch.object(loop, "gradients", stopped), contextlib.suppress(InterruptedError):
            recover_here(folder, optimizer, learning, shares=True)
    recover_here(folder, optimizer, learning, shares=True)
    distributed.close()


def command(config: RecoverConfig) -> None:
    """The command, as one of the processes that `accelerate launch --use_fsdp` starts."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    recover_command(config)
    distributed.close()


def recover_in_two(
    folder: Path, optimizer: OptimizerName, learning: Learning, *, stops: bool = False
) -> Path:
    """Recover in two processes that share the weights out; the file of what came of it."""
    folder.mkdir()
    run_ranks(work, 2, folder, optimizer, learning, stops, seconds=90)
    return folder / "weights.safetensors"
