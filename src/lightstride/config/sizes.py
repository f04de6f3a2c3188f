"""Sizes as people write them: 20GiB, 500MB, 1.5 GiB."""

import re

from lightstride.errors import ConfigError

UNITS = {
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
