"""Processes of their own, forked from one that has imported what all of them need."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess

import torch

PRELOADED = [
    "accelerate.utils",
    "lightstride.commands.prune",
    "lightstride.commands.smash",
    "torch.distributed.fsdp",
    "transformers.modeling_utils",
]


def context() -> ForkServerContext:
    """Processes that start at once; the first of a test run waits for the imports."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found


def as_rank(
    rank: int, num_ranks: int, port: int, work: Callable[..., None], arguments: Sequence[object]
) -> None:
    """Call `work` as one of several ranks, on as many threads as the tests have."""
    if num_ranks > 1:
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
        os.environ.update(own | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))
    work(*arguments)


def start_ranks(
    work: Callable[..., None], num_ranks: int, *arguments: object
) -> list[ForkServerProcess]:
    """As many processes that call `work(*arguments)`, started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    processes = [
        context().Process(target=as_rank, args=(rank, num_ranks, port, work, arguments))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    return processes


def run_ranks(
    work: Callable[..., None], num_ranks: int, *arguments: object, seconds: float = 300
) -> None:
    """The same, run to their end, which must be a good one and come within so many seconds."""
    processes = start_ranks(work, num_ranks, *arguments)
    end = time.monotonic() + seconds
    try:
        for process in processes:
            process.join(max(0, end - time.monotonic()))
        assert [process.exitcode for process in processes] == [0] * num_ranks
    finally:
        for process in processes:  # one that hangs would keep the test run from ending
            process.kill()
