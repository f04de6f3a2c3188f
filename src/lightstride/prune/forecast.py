"""What a run is about to do, counted before it starts."""

from collections.abc import Sequence

from lightstride.prune.estimate import Rates, Work, healing_work, search_work, supernet_work
from lightstride.prune.rounds import Pruner


def forecast(pruner: Pruner, shares: Sequence[float], passes: int = 0) -> dict[str, Work]:
    """Operations of all supernets, searches and closing rounds of a run, and passes of healing.

    Where a round's space lies is not known before the round: that of the uniform plan stands in.
    """
    settings, geometry = pruner.settings, pruner.space.geometry
    supernets, searches, closing = Work(), Work(), Work()
    early = round(pruner.calibration_NL.numel() * settings.early_share)
    centres = {share: pruner.centre(share) for share in shares}
    if settings.search is not None:
        for number in range(1, settings.num_rounds + 1):
            spaces = {share: pruner.narrowed(number, centres[share]) for share in shares}
            groups = [list(shares)] if number == 1 else [[share] for share in shares]
            for group in groups:
                levels = pruner.levels(spaces[share] for share in group)
                supernets += supernet_work(geometry, list(levels.items()), early)
            for share in shares:
                searches += search_work(
                    spaces[share],
                    centres[share],
                    settings.search,
                    stride=settings.fitness.stride,
                    probes=number == 1,
                )
    for share in shares:
        chosen = [(site, [shape]) for site, shape in centres[share].shapes.items()]
        closing += supernet_work(geometry, chosen, pruner.calibration_NL.numel())
    healing = healing_work(geometry, list(centres.values()), passes * pruner.calibration_NL.numel())
    works = {"supernets": supernets, "searches": searches, "closing rounds": closing}
    return works | ({"healing": healing} if passes else {})


def sentence(works: dict[str, Work], rates: Rates) -> str:
    """One line for the user."""
    seconds = {name: work.seconds(rates) for name, work in works.items()}
    parts = ", ".join(f"{name} {value / 60:.1f}" for name, value in seconds.items() if value)
    return f"about {sum(seconds.values()) / 60:.1f} minutes on this machine ({parts})"
