"""The three texts of a pruning run: calibration, search, held out; disjoint by document."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lightstride.config import PruneConfig
from lightstride.data.windows import Windows, check_disjoint, packed_windows
from lightstride.errors import DataError

Sampler = Callable[[int, int], Sequence[str]]
"""Given a number of tokens and a seed: texts that the model itself says."""


@dataclass(frozen=True)
class Texts:
    """Windows for each role."""

    calibration: Windows
    search: Windows
    held_out: Windows

    def as_dict(self) -> dict[str, Windows]:
        """The windows under the names that results use."""
        return {"calibration": self.calibration, "search": self.search, "held_out": self.held_out}

    @property
    def record(self) -> dict[str, object]:
        """Source of the tokens of each role, for `lightstride.json`."""
        return {
            role: {
                "source": windows.source,
                "num_tokens": windows.num_tokens,
                "sha256": windows.sha256,
                "documents": sorted(windows.documents),
            }
            for role, windows in self.as_dict().items()
        }

    @property
    def hashes(self) -> dict[str, str]:
        """The hash of each role's tokens."""
        return {role: windows.sha256 for role, windows in self.as_dict().items()}


def read_texts(
    config: PruneConfig, tokenizer: PreTrainedTokenizerBase, sample: Sampler, longest: int | None
) -> Texts:
    """The texts of a run; DataError where a source has too little or two roles overlap.

    The held-out text is taken first, so that it stays the same whatever the others use.  The
    model reads at most `longest` tokens at once.
    """
    assert config.window is not None
    assert config.calibration_tokens is not None
    assert config.search_tokens is not None
    assert config.held_out_tokens is not None
    search_source = config.search_text or config.calibration
    wanted = {
        "held_out": (config.held_out or search_source, config.held_out_tokens),
        "calibration": (config.calibration, config.calibration_tokens),
        "search": (search_source, config.search_tokens),
    }
    if longest is not None and config.window > longest:
        raise DataError(f"windows of {config.window} tokens; the model reads at most {longest}")
    found: dict[str, Windows] = {}
    for number, (role, (source, num_tokens)) in enumerate(wanted.items()):
        skip = frozenset[str]().union(*(w.documents for w in found.values() if w.source == source))
        documents = sample(num_tokens, config.seed + number) if source == "self" else None
        found[role] = packed_windows(
            source,
            tokenizer,
            num_tokens=num_tokens,
            window=config.window,
            seed=config.seed,
            skip=skip,
            documents=documents,
        )
    check_disjoint(**found)
    return Texts(**found)
