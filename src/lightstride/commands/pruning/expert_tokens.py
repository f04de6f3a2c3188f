"""What is said of experts: how many are left, and how well calibration text knows them."""

from dataclasses import dataclass

from lightstride.models.shapes import FFNKept, Geometry
from lightstride.prune.cut.supernet import ChosenLevels
from lightstride.results import Numbers


@dataclass(frozen=True)
class ExpertCounts:
    """Experts of all blocks of a cut model."""

    dense: int
    left: int
    few: int
    """Experts that were sent fewer tokens of calibration text than they have channels."""
    fewest: int
    """Tokens that the least known of them was sent."""
    width: int
    """Channels of a dense expert."""

    def numbers(self) -> Numbers:
        """The figures, for a `result.json`."""
        return {**vars(self)}

    def sentence(self) -> str | None:
        """A line for the user where text is too short; None where it is not."""
        if not self.few:
            return None
        return (
            f"{self.few} of {self.dense} experts were sent fewer calibration tokens than they have "
            f"channels (the least known {self.fewest}, of {self.width}): they are cut by the size "
            "of their weights; more calibration text would tell more"
        )


def count_experts(levels: ChosenLevels, geometry: Geometry) -> ExpertCounts | None:
    """The experts of a cut model; None where the dense one has none."""
    if not geometry.has_experts:
        return None
    sent: list[int] = []
    left, few, widths = 0, 0, [0]
    for site, kept in levels.kept.items():
        dense = geometry.experts(site)
        if dense:
            assert isinstance(kept, FFNKept)
            tokens = levels.supernet.entries[site].tokens
            sent += tokens
            few += sum(count < dense[0] for count in tokens)
            left += len(kept.widths)
            widths.append(dense[0])
    return ExpertCounts(len(sent), left, few, min(sent), max(widths))
