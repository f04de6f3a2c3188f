"""Memory plans on disk: `memory.json` beside a model's `config.json`, one plan a budget.

The file has a format number and a hash of what it says, so a plan that was cut short or edited is
refused, and not taken for another.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lightstride.errors import ConfigError, ModelError
from lightstride.files import whole_file
from lightstride.files.read import read_json
from lightstride.memory.plan import MemoryPlan

PLAN_FILE = "memory.json"
FORMAT = 1


@dataclass(frozen=True)
class MemoryFile:
    """Plans by budget, in entries a token, and the budget that a model takes by itself."""

    plans: Mapping[float, MemoryPlan]
    default: float | None = None
    """None is the full cache."""

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
    said = {
        "default": file.default,
        "facts": dict(facts),
        "plans": {f"{budget:g}": plan.as_dict() for budget, plan in file.plans.items()},
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
    if whole.get("format") != FORMAT:
        raise ModelError(f"{path} is of another version; this one reads format {FORMAT}")
    said = {key: whole.get(key) for key in ("default", "facts", "plans")}
    if whole.get("sha256") != plan_hash(said):
        raise ModelError(f"{path} is damaged: it is not what was written; search the plan again")
    plans, default = said["plans"], said["default"]
    assert isinstance(plans, dict)
    found = {float(budget): MemoryPlan.from_dict(plan) for budget, plan in plans.items()}
    return MemoryFile(found, None if default is None else float(str(default)))


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
