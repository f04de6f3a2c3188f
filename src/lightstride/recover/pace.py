"""How fast a training goes from its start to its end, counted in steps or in minutes.

The share that is over, from 0 to 1, decides the learning rate.  Counted in steps it is a fraction
of them.  Counted in minutes, the steps that are left are estimated: always anew while the first
checkpoint is not written, and later, at checkpoints, where the estimate is off by more than a
tenth.  Between, the share moves by the same stride a step, and the checkpoint keeps the stride: a
resumed run has the rates of one that was never killed.
"""

import math
from dataclasses import dataclass

OFF = 0.1
"""A plan is made anew where its end is off by more, as a share of what is left."""


@dataclass(frozen=True)
class Pace:
    """A share at a step, and how much each further step adds."""

    step: int
    share_there: float
    stride: float

    def share(self, step: int) -> float:
        """How much of the training is over before this step, from 0 to 1."""
        return min(1.0, self.share_there + (step - self.step) * self.stride)

    def steps_left(self, step: int) -> int:
        """How many further steps there are, this one included."""
        return max(1, math.ceil((1 - self.share(step)) / self.stride))

    @property
    def as_list(self) -> list[float]:
        """For the checkpoint."""
        return [self.step, self.share_there, self.stride]


def counted(num_steps: int) -> Pace:
    """The pace of a training of so many steps."""
    return Pace(0, 0.0, 1 / num_steps)


def read_pace(numbers: list[float]) -> Pace:
    """Read back what `as_list` gave."""
    return Pace(int(numbers[0]), numbers[1], numbers[2])


def timed(pace: Pace, step: int, *, seconds_left: float, seconds_a_step: float, most: int) -> Pace:
    """The pace at which the training ends with its time, or with `most` further steps."""
    share = pace.share(step)
    steps_left = max(1, min(most, round(seconds_left / seconds_a_step)))
    planned = (1 - share) / pace.stride
    if share >= 1 or abs(steps_left / max(planned, 1) - 1) <= OFF:
        return pace
    return Pace(step, share, (1 - share) / steps_left)
