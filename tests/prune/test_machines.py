"""Machines that are known by name."""

from typing import get_args

import pytest

from lightstride.config.prune import MachineName
from lightstride.prune.machines import known_machine


@pytest.mark.parametrize("name", sorted(set(get_args(MachineName)) - {"here"}))
def test_every_name_has_rates_and_their_origin(name: MachineName) -> None:
    machine = known_machine(name)
    assert min(*vars(machine.rates).values(), machine.disk, machine.memory) > 0
    assert (machine.devices > 0) == (machine.device_memory > 0)
    assert machine.title
    assert machine.assumed
