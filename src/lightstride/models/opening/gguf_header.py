"""The head of a .gguf file, walked once with every count and length held against the file's size.

gguf's own reader believes what a file says: a length of billions is read number by number.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from pathlib import Path

from lightstride.errors import ModelError
from lightstride.files.read import file_size

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each plain type of value."""
STRING, ARRAY = 8, 9
INTEGERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 10: "Q", 11: "q"}
MAX_HEAD_BYTES = 256 << 20
MAX_DIMENSIONS = 4
LIMITS = {
    "block_count": 10_000,
    "embedding_length": 1 << 20,
    "feed_forward_length": 1 << 24,
    "attention.head_count": 1 << 16,
    "attention.head_count_kv": 1 << 16,
    "attention.key_length": 1 << 16,
    "attention.value_length": 1 << 16,
    "attention.sliding_window_pattern": 10_000,
    "context_length": 1 << 31,
    "vocab_size": 1 << 24,
    "rope.dimension_count": 1 << 16,
}
"""Largest values of the keys that sizes and loops come from, by the key without its family."""

REQUIRED = ("architecture", "block_count", "embedding_length", "attention.head_count")


class Walk:
    """A place in the head of a file; everything raises ModelError at its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = file_size(path, ModelError)
        with path.open("rb") as file:
            self.data = file.read(MAX_HEAD_BYTES)
        self.at = 0
        self.num_blocks = 0
        self.keys: set[str] = set()
        """Keys seen, without their family."""

    def skip(self, count: int) -> None:
        """Go on by so many bytes."""
        if count < 0 or self.at + count > len(self.data):
            raise ModelError(f"{self.path} is truncated, or not a .gguf file")
        self.at += count

    def number(self, code: str) -> int:
        """The next whole number, of struct's type `code`."""
        start = self.at
        self.skip(struct.calcsize(code))
        (value,) = struct.unpack_from(f"<{code}", self.data, start)
        return int(value)

    def text(self) -> str:
        """The next string."""
        length = self.number("Q")
        start = self.at
        self.skip(length)
        try:
            return self.data[start : self.at].decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(f"{self.path} is damaged: a name in it is not UTF-8") from error

    def value(self, key: str, kind: int, depth: int = 0) -> None:
        """Go over the next value of a type, held against what its key may be."""
        if kind == STRING:
            self.skip(self.number("Q"))
        elif kind == ARRAY and depth == 0:
            inner, count = self.number("I"), self.number("Q")
            if count > self.size:
                raise ModelError(f"{self.path} is damaged: {key} has {count:,} entries")
            if inner in SIZES and inner not in INTEGERS:
                self.skip(count * SIZES[inner])
            else:
                for _ in range(count):
                    self.value(key, inner, depth + 1)
        elif kind in INTEGERS:
            found = self.number(INTEGERS[kind])
            limit = LIMITS.get(key.partition(".")[2])
            if limit is not None and not 0 <= found <= limit:
                raise ModelError(f"{self.path}: {key} is {found:,}; at most {limit:,} is read")
            if key.endswith(".block_count"):
                self.num_blocks = found
        elif kind in SIZES:
            self.skip(SIZES[kind])
        else:
            raise ModelError(f"{self.path} is damaged: {key} has the unknown type {kind}")


def check_gguf(path: Path) -> None:
    """Raise ModelError for a .gguf file whose head is damaged or says what cannot be."""
    walk = Walk(path)
    if walk.data[:4] != MAGIC:
        raise ModelError(f"{path} is truncated, or not a .gguf file")
    walk.skip(4)
    version = walk.number("I")
    if version not in VERSIONS:
        raise ModelError(f"{path} is of GGUF version {version}; 2 and 3 are read")
    num_tensors, num_keys = walk.number("Q"), walk.number("Q")
    for _ in range(num_keys):
        key = walk.text()
        walk.keys.add(key.partition(".")[2])
        walk.value(key, walk.number("I"))
    for key in REQUIRED:
        if key not in walk.keys:
            raise ModelError(f"{path} does not say its {key}")
    there = 0
    for _ in range(num_tensors):
        name, num_dimensions = walk.text(), walk.number("I")
        block = name.partition(".")[2].partition(".")[0]
        if name.startswith("blk.") and block.isdecimal():
            there = max(there, int(block) + 1)
        if num_dimensions > MAX_DIMENSIONS:
            raise ModelError(f"{path} is damaged: {name} has {num_dimensions:,} dimensions")
        elements = 1
        for _ in range(num_dimensions):
            elements *= walk.number("Q")
        walk.number("I")  # its type
        if elements > 16 * walk.size or walk.number("Q") > walk.size:
            raise ModelError(f"{path} is truncated or damaged: {name} does not fit it")
    if walk.num_blocks > there:
        raise ModelError(f"{path} says {walk.num_blocks:,} blocks; it has weights of {there:,}")
