"""A whole pruning run of a toy, in processes of its own."""

import json
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from random import Random

from helpers.processes import run_ranks, start_ranks
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.commands.prune import prune
from lightstride.config import PruneConfig

WORDS = ("the", "of", "and", "to", "in", "is", "was", "for", "on", "that", "with", "as", "by")


def make_inputs(folder: Path) -> None:
    """A toy model and a text of many documents."""
    model = tiny_llama(num_layers=2, num_channels=48)
    model.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    random = Random(0)
    lines = [
        json.dumps({"text": " ".join(random.choice(WORDS) for _ in range(60)) + f" {number}"})
        for number in range(60)
    ]
    (folder / "text.jsonl").write_text("\n".join(lines), "utf-8")


def config_of(folder: Path, name: str, **changes: object) -> PruneConfig:
    """A small run of the toy; its output is `folder / name`."""
    values: dict[str, object] = {
        "model": str(folder / "model"),
        "output": str(folder / name),
        "sparsity": (0.3, 0.5),
        "preset": "demo",
        "calibration": str(folder / "text.jsonl"),
        "calibration_tokens": 512,
        "search_tokens": 512,
        "held_out_tokens": 256,
        "window": 32,
        "rounds": 2,
        "generations": 3,
        "offspring": 6,
        "multiple": 8,
        "device": "cpu",
        "dtype": "float32",
    }
    return PruneConfig(**{**values, **changes})  # type: ignore[arg-type]


def plans_in(config: PruneConfig) -> dict[str, object]:
    """The plans of all checkpoints, by folder name."""
    return {
        path.parent.name: json.loads(path.read_text("utf-8"))["plan"]
        for path in sorted(Path(config.output).glob("**/lightstride.json"))
    }


def start(config: PruneConfig, num_ranks: int = 1) -> list[ForkServerProcess]:
    """The processes of a run, started."""
    return start_ranks(prune, num_ranks, config)


def finish(config: PruneConfig, num_ranks: int = 1) -> dict[str, object]:
    """The plans of a whole run."""
    run_ranks(prune, num_ranks, config)
    return plans_in(config)
