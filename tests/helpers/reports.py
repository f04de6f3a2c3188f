"""Results of imagined runs, as the commands write them."""

import json
import random
from collections.abc import Mapping
from pathlib import Path

from lightstride.results import write_result

DENSE_PLAN = "|".join(["3x3,1536"] * 30)


def write(folder: Path, kind: str, numbers: Mapping[str, object], **config: object) -> None:
    write_result(
        folder / "result.json",
        kind=kind,
        numbers=numbers,
        config=config,
        command=["lightstride", kind, "a model"],
        seed=0,
        data={"text.txt": "ab" * 32},
    )


def judged(source: str, parameters: int, perplexity: float, accuracy: float) -> dict[str, object]:
    score = {"stderr": 0.01, "num_items": 500}
    return {
        "source": source,
        "parameters": parameters,
        "weight_bytes": 2 * parameters,
        "perplexity": {"value": perplexity, "nll": 3.0, "num_tokens": 30705},
        "tasks": {
            "arc_easy": {"value": accuracy, **score},
            "piqa": {"value": accuracy + 0.1, **score},
        },
        "warnings": [],
    }


def retained(score: float, against: float) -> dict[str, float]:
    return {
        "score": score,
        "against": against,
        "difference": score - against,
        "difference_stderr": 0.008,
        "ratio": score / against,
        "ratio_stderr": 0.012,
        "above_chance": (score - 0.25) / (against - 0.25),
    }


def load(batch: int, speed: float) -> dict[str, object]:
    return {
        "batch": batch,
        "prompt": 32,
        "first_token_seconds": {"median": 1 / speed, "low": 0.9 / speed, "high": 1.2 / speed},
        "decode_tokens_per_second": {"median": speed, "low": 0.9 * speed, "high": 1.1 * speed},
        "tokens_per_step": 1.0 + batch / 10,
    }


def pruned_plan(draw: random.Random) -> str:
    heads = [f"{draw.randint(1, 3)}x{draw.randint(1, 3)}" for _ in range(30)]
    return "|".join(f"{each},{draw.randrange(384, 1537, 128)}" for each in heads)


def write_runs(folder: Path) -> Path:
    """A folder with a pruning run, its search, an evaluation and a benchmark."""
    draw = random.Random(0)
    size = {"parameters": 134_515_008, "bytes": 269_030_016, "perplexity": 19.8, "sparsity": 0.0}
    small = {"parameters": 107_000_000, "bytes": 214_000_000, "perplexity": 26.1, "sparsity": 0.25}
    smaller = {"parameters": 81_000_000, "bytes": 162_000_000, "perplexity": 44.0, "sparsity": 0.5}
    sizes = [
        {**small, "name": "25", "folder": "pruned/25", "plan": pruned_plan(draw)},
        {**smaller, "name": "50", "folder": "pruned/50", "plan": pruned_plan(draw)},
    ]
    dense = {**size, "name": "dense", "plan": DENSE_PLAN}
    write(
        folder / "pruned",
        "prune",
        {"dense": dense, "sizes": sizes},
        model="smollm2-135m",
        calibration="c4.jsonl.gz",
        held_out=None,
    )
    lines = []
    for scope in ("round-1-25", "round-2-25"):
        for generation in range(12):
            for tokens, count in ((1024, 8), (8192, 3)):
                for _ in range(count):
                    fitness = 1.5 - 0.05 * generation + 0.2 * draw.random()
                    fitness -= 0.3 * (scope == "round-2-25")
                    line = {"scope": scope, "generation": generation, "tokens": tokens}
                    lines.append(json.dumps({**line, "fitness": fitness, "plan": "3x3,1536"}))
    (folder / "pruned" / "search.jsonl").write_text("\n".join(lines) + "\n" + lines[0][:20])
    write(
        folder / "evaluation",
        "evaluate",
        {
            "model": judged("pruned/25", 107_000_000, 27.0, 0.45),
            "against": judged("smollm2-135m", 134_515_008, 19.78, 0.5),
            "retained": {
                "arc_easy": retained(0.45, 0.5),
                "piqa": retained(0.55, 0.6),
                "mean": retained(0.5, 0.55),
            },
        },
        model="pruned/25",
        against="smollm2-135m",
        perplexity="/data/wiki.test.raw.gz",
    )
    write(
        folder / "bench",
        "bench",
        {
            "model": {
                "source": "pruned/25",
                "parameters": 107_000_000,
                "total_bytes": 214_000_000,
                "loads": [load(1, 30.0), load(8, 120.0)],
            },
            "against": {
                "source": "smollm2-135m",
                "parameters": 134_515_008,
                "total_bytes": 269_030_016,
                "loads": [load(1, 24.0), load(8, 100.0)],
            },
        },
    )
    return folder
