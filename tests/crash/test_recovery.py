"""A recovery that is killed at random moments and resumed: the weights of one never killed."""

import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.healing import WINDOWS, cut
from helpers.processes import start_ranks
from helpers.toys import tiny_llama
from lightstride.models.families.registry import adapter_for
from lightstride.recover.loop import Recovery, Rows, recover

pytestmark = pytest.mark.timeout(400)  # the first process imports torch, slowly if others work
KILLS = 20
RECOVERY = Recovery(passes=8, learning_rate=3e-3, step_tokens=96, save_minutes=0.0)
END = "weights.safetensors"


def learn(folder: Path) -> None:
    """Recover a toy in a folder, from what is there; its weights are written at the end."""
    dense = tiny_llama(num_layers=2).bfloat16()
    smaller = cut(dense)
    (folder / "begun").touch()
    recover(
        smaller, dense, adapter_for(dense.config), Rows.alike(WINDOWS), RECOVERY, folder / "work"
    )
    weights = {name: tensor.clone() for name, tensor in smaller.state_dict().items()}
    save_file(weights, folder / END)


def begin(folder: Path) -> ForkServerProcess:
    """A process that learns, once it has begun to."""
    folder.mkdir(exist_ok=True)
    (folder / "begun").unlink(missing_ok=True)
    (process,) = start_ranks(learn, 1, folder)
    while not (folder / "begun").exists():
        time.sleep(0.001)
        assert process.exitcode in (None, 0)
    return process


def test_killed_at_twenty_random_moments_the_weights_are_the_same(tmp_path: Path) -> None:
    whole = begin(tmp_path / "whole")
    start = time.monotonic()
    whole.join()
    duration = time.monotonic() - start
    expected = load_file(tmp_path / "whole" / END)
    random, kills, runs = Random(0), 0, 0
    while kills < KILLS or runs < 2:
        folder = tmp_path / f"run-{runs}"
        process = begin(folder)
        if kills < KILLS:
            process.join(random.uniform(0, 0.6 * duration))
            if process.exitcode is None:
                process.kill()
        process.join()
        kills += process.exitcode != 0
        if process.exitcode == 0:
            runs += 1
            found = load_file(folder / END)
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
