"""A recovery that is killed at random moments and resumed: the weights of one never killed."""

import time
from dataclasses import replace
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
from lightstride.recover.loop import OptimizerName, Recovery, Rows, recover

pytestmark = pytest.mark.timeout(400)  # the first process imports torch, slowly if others work
KILLS: dict[OptimizerName, int] = {"adam": 20, "factored": 5}
RECOVERY = Recovery(passes=8, learning_rate=3e-3, step_tokens=96, save_minutes=0.0)
END = "weights.safetensors"


def learn(folder: Path, optimizer: OptimizerName) -> None:
    """Recover a toy in a folder, from what is there; its weights are written at the end."""
    dense = tiny_llama(num_layers=2).bfloat16()
    smaller = cut(dense)
    (folder / "begun").touch()
    recovery = replace(RECOVERY, optimizer=optimizer)
    recover(
        smaller, dense, adapter_for(dense.config), Rows.alike(WINDOWS), recovery, folder / "work"
    )
    weights = {name: tensor.clone() for name, tensor in smaller.state_dict().items()}
    save_file(weights, folder / END)


def begin(folder: Path, optimizer: OptimizerName) -> ForkServerProcess:
    """A process that learns, once it has begun to."""
    folder.mkdir(exist_ok=True)
    (folder / "begun").unlink(missing_ok=True)
    (process,) = start_ranks(learn, 1, folder, optimizer)
    while not (folder / "begun").exists():
        time.sleep(0.001)
        assert process.exitcode in (None, 0)
    return process


@pytest.mark.parametrize("optimizer", KILLS)
def test_killed_at_random_moments_the_weights_are_the_same(
    optimizer: OptimizerName, tmp_path: Path
) -> None:
    whole = begin(tmp_path / "whole", optimizer)
    start = time.monotonic()
    whole.join()
    duration = time.monotonic() - start
    expected = load_file(tmp_path / "whole" / END)
    random, kills, runs = Random(0), 0, 0
    while kills < KILLS[optimizer] or runs < 2:
        folder = tmp_path / f"run-{runs}"
        process = begin(folder, optimizer)
        if kills < KILLS[optimizer]:
            process.join(random.uniform(0, 0.6 * duration))
            if process.exitcode is None:
                process.kill()
        process.join()
        kills += process.exitcode != 0
        if process.exitcode == 0:
            runs += 1
            found = load_file(folder / END)
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
