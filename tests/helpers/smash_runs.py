"""Runs of smash that end within seconds: prompts, and flags."""

import json
from pathlib import Path

from lightstride.config import SmashRunConfig


def write_prompts(folder: Path, count: int = 24) -> None:
    """A file of prompts, `prompts.jsonl`."""
    lines = [json.dumps({"prompt": f"what is {n} and {n * 7 % 13}?"}) for n in range(count)]
    (folder / "prompts.jsonl").write_text("\n".join(lines), "utf-8")


def smash_config(folder: Path, output: str, base: str, /, **changes: object) -> SmashRunConfig:
    """A run with those prompts, of a model in the folder."""
    values: dict[str, object] = {
        "model": str(folder / base),
        "output": str(folder / output),
        "prompts": str(folder / "prompts.jsonl"),
        "preset": "demo",
        "answer_tokens": 16,
        "held_out": 0.2,
        "row_tokens": 80,
        "device": "cpu",
        "dtype": "float32",
        **changes,
    }
    return SmashRunConfig(**values)  # type: ignore[arg-type]
