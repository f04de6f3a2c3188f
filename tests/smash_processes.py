"""A small training in one process or in several."""

import json
import multiprocessing
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import torch

from answered_toys import answered, sharp_llama
from lightstride import distributed
from lightstride.smash.examples import Example
from lightstride.smash.learn import Learner, Learning
from lightstride.smash.train import Training, train
from lightstride.training.progress import TrainingFolder
from smashed_toys import toy


def fresh_learner(adapter_rank: int = 0) -> Learner:
    """The same untrained toy every time."""
    model = toy(sharp_llama(), adapter_rank=adapter_rank, num_layers=1)
    return Learner(model, Learning(), torch.float32)


def train_here(folder: Path, examples: Sequence[Example]) -> Path:
    """Train in this process; the folder, with the losses in a file."""
    folder.mkdir(exist_ok=True)
    settings = Training(steps=4, row_tokens=40, rows=1, accumulate=4, own_cuts_from=0.5)
    learner = fresh_learner()
    progress = train(learner, examples, settings, TrainingFolder(folder), dict)
    if distributed.rank() == 0:
        losses = [loss for _, loss in progress.losses]
        (folder / "losses.json").write_text(json.dumps(losses))
    return folder


def work(folder: Path, rank: int, num_ranks: int, port: int) -> None:
    """What one of several processes does."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num_ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    distributed.init()
    train_here(folder, answered(sharp_llama(), 12))
    distributed.close()


def train_in_processes(folder: Path, num_ranks: int) -> Path:
    """Train in processes of their own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=work, args=(folder, rank, num_ranks, port))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * num_ranks
    return folder
