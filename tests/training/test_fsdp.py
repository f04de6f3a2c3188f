"""Two processes that share out weights, gradients and optimizer learn what one does."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.recover_processes import recover_here, recover_in_two
from lightstride.recover.loop import OptimizerName
from lightstride.recover.student import Learning
from lightstride.training.fsdp import whole

pytestmark = pytest.mark.timeout(400)
CASES: dict[str, tuple[OptimizerName, Learning]] = {
    "adam": ("adam", Learning()),
    "factored": ("factored", Learning(checkpoint_activations=True)),
    "rank": ("adam", Learning(rank=2)),
}


@pytest.mark.parametrize(
    "case",
    ["factored", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adam", "rank"))],
)
def test_two_processes_learn_what_one_does(case: str, tmp_path: Path) -> None:
    optimizer, learning = CASES[case]
    alone = tmp_path / "one"
    alone.mkdir()
    recover_here(alone, optimizer, learning, shares=False)
    one = load_file(alone / "weights.safetensors")
    two = load_file(recover_in_two(tmp_path / "two", optimizer, learning))
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=2e-4)


def test_they_go_on_from_a_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    learning = Learning(head=True)
    whole = load_file(recover_in_two(tmp_path / "whole", "factored", learning))
    resumed = load_file(recover_in_two(tmp_path / "stopped", "factored", learning, stops=True))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_what_lies_on_the_cpu_as_a_whole_is_not_copied() -> None:
    weight_OI = torch.nn.Parameter(torch.rand(4, 6))
    assert whole(weight_OI).data_ptr() == weight_OI.data_ptr()
    for part in (weight_OI[1:], weight_OI.T, weight_OI[:2]):
        found = whole(part)
        assert torch.equal(found, part)
        assert found.untyped_storage().nbytes() == found.nbytes
