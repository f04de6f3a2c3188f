"""A benchmark as a module, and prompts for those that decode."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

from helpers.smash_toys import sharp, toy
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.checkpoint import save_checkpoint

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load_benchmark(name: str) -> ModuleType:
    """The script of this name, which may import its neighbors."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    own = f"{name}_benchmark"
    specification = importlib.util.spec_from_file_location(own, FOLDER / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[own] = module
    specification.loader.exec_module(module)
    return module


def save_smashed_and_prompts(folder: Path) -> None:
    """A smashed model on its base, and prompts of two domains."""
    base = sharp(tiny_llama(tied=False))
    save_checkpoint(base, byte_tokenizer(), folder / "base")
    base.name_or_path = str(folder / "base")
    save_checkpoint(toy(base), byte_tokenizer(), folder / "smashed")
    lines = [{"domain": d, "prompt": f"{d} {n}"} for n in range(3) for d in ("chat", "maths")]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
