"""Values of flags, whatever the command: bounds of numbers, names of models, sizes such as 20GiB.

A number of a flag that is not named here is at most 10^12.
"""

import math
import re
from collections.abc import Mapping

from lightstride.errors import ConfigError

MOST = 10**12
RANGES: Mapping[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "learning_rate": (0, 1),
    "base_rate": (0, 1),
    "heal_rate": (0, 1),
    "damping": (0, 1000),
    "cache_gib": (0, 10**6),
    "minutes": (0, 10**7),
    "temperature": (0, 1000),
    "repetition_penalty": (0, 1000),
    "tp": (1, 1024),
    "batch": (1, 65536),
    "batch_size": (1, 65536),
    "answer_batch": (1, 65536),
    "context": (1, 2**24),
    "prompt": (1, 2**24),
    "new_tokens": (2, 2**24),
    "max_new_tokens": (1, 2**24),
    "answer_tokens": (2, 2**24),
    "window": (2, 2**24),
    "row_tokens": (1, 2**24),
    "kv_context": (100, 2**24),
    "rows": (1, 65536),
    "repeats": (1, 10**6),
    "heal": (0, 10**6),
    "passes": (1, 10**6),
    "rounds": (1, 100),
    "generations": (1, 10**6),
    "offspring": (1, 10**6),
    "levels": (1, 65536),
    "micro_layers": (1, 1000),
    "max_segment": (2, 1024),
    "rank": (0, 65536),
    "lookup": (0, 65536),
    "tree": (1, 65536),
}
MODELS = ("model", "models", "against", "teacher", "start_from", "from_head")
"""Flags that name models."""
UNITS: Mapping[str, int] = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?I?B)", re.IGNORECASE)


def problem(name: str, value: object) -> str | None:
    """What a value of a field must be, where it is beyond all use; None where it is not."""
    if name == "output" and not value:
        return "the name of a file or folder"
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, float) and not math.isfinite(each):
            return "a finite number"
        if isinstance(each, int | float) and not isinstance(each, bool):
            low, high = RANGES.get(name, (-MOST, MOST))
            if not low <= each <= high:
                return f"from {low:,} to {high:,}" if name in RANGES else f"at most {high:,}"
        if name in MODELS and isinstance(each, str):
            if not each:
                return "the name of a model"
            if "://" in each:
                return "a folder, a file, or an id on the hub alone, as owner/name"
    return None


def parse_size(flag: str, text: str) -> int:
    """Bytes of a size with its unit; ConfigError, naming the flag, for anything else."""
    found = SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * UNITS[found[2].upper()]) if found else 0
    if not 0 < size < 1 << 60:
        raise ConfigError(f"{flag} {text} is not allowed: it must be a size such as 20GiB or 500MB")
    return size


def size_text(size: int) -> str:
    """Bytes in GiB, rounded up to two digits, as a flag takes it."""
    hundredths = -(-100 * size // (1 << 30))
    return f"{hundredths / 100:.2f}GiB"
