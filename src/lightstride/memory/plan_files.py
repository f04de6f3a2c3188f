"""Memory plans on disk: `memory.json` beside a model's `config.json`, one plan a budget.

The file has a format number and a hash of what it says, so a plan that was cut short or edited is
refused, and not taken for another.  Scores by which heads choose lie in `memory.safetensors`, whose
hash is in it.  Format 1 had none.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import safetensors.torch
from safetensors import SafetensorError

from lightstride.errors import ConfigError, ModelError
from lightstride.files import whole_file
from lightstride.files.read import Finite, read_bytes, read_json
from lightstride.memory.plan import MemoryPlan
from lightstride.memory.scores import Scores

PLAN_FILE, SCORES_FILE = "memory.json", "memory.safetensors"
FORMAT = 2
SAID: Mapping[int, Sequence[str]] = {
    1: ("default", "facts", "plans"),
    2: ("default", "facts", "plans", "scores"),
}
"""What files of each format say."""


class PlansOnDisk(msgspec.Struct):
    """What `memory.json` says, beside its format and hash."""

    default: Finite | None
    plans: dict[str, dict[str, object]]
    scores: str | None = None
    """Hash of the file of scores."""


@dataclass(frozen=True)
class MemoryFile:
    """Plans by budget, in entries a token, and the budget that a model takes by itself."""

    plans: Mapping[float, MemoryPlan]
    default: float | None = None
    """None is the full cache."""
    scores: Scores | None = field(default=None, compare=False)
    """What heads choose by; None where no plan has such heads."""

    @property
    def budgets(self) -> tuple[float, ...]:
        """All budgets that can be asked for, the full cache first."""
        return (1.0, *sorted(set(self.plans) - {1.0}, reverse=True))

    def plan_for(self, budget: float | None) -> MemoryPlan | None:
        """The plan of a budget, of the default where none is given; None is the full cache.

        ConfigError where there is no plan for it.
        """
        wanted = self.default if budget is None else budget
        if wanted is None or wanted == 1:
            return None
        if wanted not in self.plans:
            there = ", ".join(f"{each:g}" for each in sorted(self.plans, reverse=True))
            raise ConfigError(
                f"--kv {wanted:g} is not among this model's memory plans: it has {there}, and 1 is "
                "the full cache"
            )
        return self.plans[wanted]


def write_plans(folder: Path, file: MemoryFile, facts: Mapping[str, object]) -> None:
    """Write the plans into a model's folder, with what else is to be told about them."""
    said: dict[str, object] = {
        "default": file.default,
        "facts": dict(facts),
        "plans": {f"{budget:g}": plan.as_dict() for budget, plan in file.plans.items()},
        "scores": None if file.scores is None else write_scores(folder, file.scores),
    }
    whole = {"format": FORMAT, "sha256": plan_hash(said), **said}
    with whole_file(folder / PLAN_FILE) as partial:
        partial.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_plans(folder: Path) -> MemoryFile | None:
    """The plans in a model's folder, None where it has none; ModelError for a damaged file."""
    path = folder / PLAN_FILE
    if not path.is_file():
        return None
    try:
        whole = read_json(path, dict[str, object], ModelError)
    except ModelError as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    names = next((SAID[known] for known in SAID if known == whole.get("format")), None)
    if names is None:
        known = " and ".join(map(str, SAID))
        raise ModelError(f"{path} is of another version; this one reads formats {known}")
    said = {key: whole.get(key) for key in names}
    if whole.get("sha256") != plan_hash(said):
        raise ModelError(f"{path} is damaged: it is not what was written; search the plan again")
    try:
        typed = msgspec.convert(said, PlansOnDisk)
        found = {float(key): MemoryPlan.from_dict(plan) for key, plan in typed.plans.items()}
    except ValueError as error:  # msgspec's is one, too
        raise ModelError(f"{path} is damaged: {error}") from error
    if typed.scores is None and any(plan.is_scored for plan in found.values()):
        raise ModelError(f"{path} has heads that choose by scores, and no scores")
    scores = None if typed.scores is None else read_scores(folder, typed.scores)
    return MemoryFile(found, typed.default, scores)


def write_scores(folder: Path, scores: Scores) -> str:
    """Write scores into a folder, and the hash of their file."""
    tensors = {f"blocks.{block}": weight for block, weight in enumerate(scores.blocks)}
    data = safetensors.torch.save(tensors)
    with whole_file(folder / SCORES_FILE) as partial:
        partial.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read_scores(folder: Path, sha256: str | None = None) -> Scores:
    """The scores in a folder, whose file has this hash; ModelError where it has not."""
    path = folder / SCORES_FILE
    data = read_bytes(path, ModelError)
    try:
        if sha256 not in (None, hashlib.sha256(data).hexdigest()):
            raise ModelError(f"{path} is damaged: it is not what was written with the plans")
        tensors = safetensors.torch.load(data)
        return Scores([tensors[f"blocks.{block}"] for block in range(len(tensors))])
    except (SafetensorError, KeyError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error


def check_belongs(plan: MemoryPlan, heads: list[int], base: str, where: str) -> None:
    """Refuse, with ModelError, a plan that was made for another model."""
    if plan.base and plan.base != base:
        raise ModelError(
            f"the memory plan of {where} is for another model ({plan.base}, not {base})"
        )
    if [len(block) for block in plan.blocks] != heads:
        raise ModelError(f"the memory plan of {where} is for other numbers of KV heads")


def plan_hash(said: Mapping[str, object]) -> str:
    """Hash of what a file says."""
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
