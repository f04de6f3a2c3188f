"""Points of the charts."""

from lightstride.report.charts import frontier
from lightstride.report.facts import Block, read_plan


def test_plans_and_frontiers() -> None:
    assert read_plan("3x2,1152|1x3,0") == [Block(6, 3, 1152), Block(3, 1, 0)]
    points = [(3.0, 5.0), (1.0, 9.0), (2.0, 9.5), (4.0, 4.0)]
    assert frontier(points, lower_is_better=True) == [(1.0, 9.0), (3.0, 5.0), (4.0, 4.0)]
    assert frontier(points, lower_is_better=False) == [(1.0, 9.0), (2.0, 9.5)]
