"""What a forward of a base costs on this machine, by rows and columns: measured once, and kept.

    CACHE/costs/KEY.json      KEY is a hash of the model, the machine, its threads and the precision

A table is measured where it is first needed, for about as many rows as there are (a fraction of a
second each), from forwards behind 128 entries a row; the fastest of a few counts.  On a CPU it is
processor time that is compared, so that other work on the machine matters less.  The table of
another machine or model has another name; a file that cannot be read is measured anew.

Shapes: B rows, Q columns of a row.
"""

import hashlib
import itertools
import json
import os
import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from weakref import ReferenceType, WeakKeyDictionary, ref

import msgspec
import numpy as np
import torch
from transformers import PreTrainedModel

from lightstride.errors import LightstrideError, ModelError, OutputError
from lightstride.files import cache_folder
from lightstride.files.sealed import read_sealed, write_sealed
from lightstride.generate.batch.forward import CachedBatch
from lightstride.generate.modes import ColumnReader, Columns
from lightstride.models.device import synchronize
from lightstride.models.fingerprint import model_hash
from lightstride.smash.decode.budget import Times

COST_FORMAT = 3
"""Raised where the file's layout changes, and where a forward becomes faster."""
ROWS = (1, 4, 16, 64)
"""Rows that are measured; others are between them."""
COLUMNS = (1, 2, 4, 8, 16, 32)
"""Columns of a row that are measured, as far as all rows have no more than MOST_COLUMNS."""
MOST_COLUMNS = 256
USUAL_CONTEXT = 128
DRAFTING = 2
"""Rows for each one that has drafts."""
REPEATS = 4

Points = Sequence[tuple[int, float]]
"""Columns of all rows together, ascending, and seconds."""
Seconds = Annotated[float, msgspec.Meta(gt=0, le=1e6)]


class CostFile(msgspec.Struct):
    """A table on disk."""

    format: int
    described: dict[str, str]
    seconds: dict[str, list[tuple[int, Seconds]]]


@dataclass
class CostTable:
    """Seconds of a forward, measured for some numbers of rows as they are asked for."""

    measure: Callable[[int], Points]
    path: Path | None = None
    """Where it is kept; None: nowhere."""
    described: dict[str, str] = field(default_factory=dict)
    points: dict[int, Points] = field(default_factory=dict)
    curves: dict[int, Times] = field(default_factory=dict)

    def seconds(self, rows: int, columns: int) -> float:
        """Seconds of a forward over so many columns of so many rows together."""
        above = ROWS[min(bisect_left(ROWS, rows), len(ROWS) - 1)]
        below = max((each for each in ROWS if each <= rows), default=above)
        # Between two measured numbers of rows, each at as many columns a row.
        high = between(self.of_rows(above), columns * above / rows)
        if above == below:
            return high * max(1.0, rows / above)
        low = between(self.of_rows(below), columns * below / rows)
        return low + (high - low) * (rows - below) / (above - below)

    def curve(self, rows: int, most: int) -> Times:
        """Seconds of so many rows by all numbers of columns together, from 0 to at least `most`."""
        known = self.curves.get(rows)
        if known is None or len(known) <= most:
            self.curves[rows] = np.array([self.seconds(rows, n) for n in range(2 * most + 1)])
        return self.curves[rows]

    def of_rows(self, rows: int) -> Points:
        """The points of a number of rows, measured now if they were not before."""
        if rows not in self.points:
            self.points[rows] = self.measure(rows)
            self.save()
        return self.points[rows]

    def complete(self) -> "CostTable":
        """The same table, measured for all numbers of rows."""
        for rows in ROWS:
            self.of_rows(rows)
        return self

    def save(self) -> None:
        """Keep the table; where the folder cannot be written it is measured again next time."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_sealed(
                self.path,
                {"format": COST_FORMAT, "described": self.described, "seconds": self.as_dict()},
            )
        except (OSError, OutputError):
            self.path = None

    def load(self) -> None:
        """Take over what is kept, if it is readable and of this format."""
        if self.path is None or not self.path.is_file():
            return
        try:
            kept = read_sealed(self.path, CostFile, ModelError)
        except LightstrideError:
            return
        if kept.format == COST_FORMAT:
            self.points = {
                rows: kept.seconds[str(rows)] for rows in ROWS if kept.seconds.get(str(rows))
            }

    def as_dict(self) -> dict[str, list[list[float]]]:
        """For JSON: by rows, columns of all of them and seconds."""
        return {str(rows): [[*each] for each in self.points[rows]] for rows in sorted(self.points)}

    def lines(self) -> list[str]:
        """The table for a person."""
        return cost_lines(self.points)


def cost_lines(points: Mapping[int, Points]) -> list[str]:
    """A line for each number of rows: milliseconds of a forward by columns a row."""
    found = []
    for rows in sorted(points):
        cells = [f"{n // rows}: {1000 * each:.1f}" for n, each in points[rows]]
        found.append(f"{rows:2} rows, ms by columns a row   {'   '.join(cells)}")
    return found


def between(points: Points, columns: float) -> float:
    """Seconds at a number of columns: on the line between its neighbors, or beyond the last two."""
    if len(points) == 1:
        return points[0][1] * max(1.0, columns / points[0][0])
    index = min(max(1, bisect_left([n for n, _ in points], columns)), len(points) - 1)
    (n0, s0), (n1, s1) = points[index - 1], points[index]
    return max(s0 + (s1 - s0) * (columns - n0) / (n1 - n0), min(s0, s1) / 2)


TABLES: WeakKeyDictionary[PreTrainedModel, dict[str, CostTable]] = WeakKeyDictionary()
"""By model and threads: the tables of this process."""


def costs_of(model: PreTrainedModel) -> CostTable:
    """The model's table on this machine, with as many threads as there are now."""
    threads = str(torch.get_num_threads())
    tables = TABLES.setdefault(model, {})
    if threads not in tables:
        described = describe(model)
        name = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
        path = cache_folder() / "costs" / f"{name}.json"
        held = ref(model)  # a table must not keep its model
        tables[threads] = CostTable(lambda rows: measure_held(held, rows), path, described)
        tables[threads].load()
    return tables[threads]


def measure_held(held: ReferenceType[PreTrainedModel], rows: int) -> Points:
    """`measure_forwards` of a model that is still there."""
    model = held()
    assert model is not None
    return measure_forwards(model, rows)


def describe(model: PreTrainedModel) -> dict[str, str]:
    """All that a table hangs on."""
    device = model.device
    on_cpu = device.type == "cpu"
    return {
        "model": model_hash(model)[:16],
        "dtype": str(model.dtype),
        "attention": str(model.config._attn_implementation),
        "device": processor() if on_cpu else torch.cuda.get_device_name(device),
        "threads": str(torch.get_num_threads()) if on_cpu else "",
        "torch": torch.__version__,
    }


def processor() -> str:
    """The processor's name and the number of its cores."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text("utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores"


def measure_forwards(model: PreTrainedModel, rows: int) -> Points:
    """Seconds of forwards over some numbers of columns, and over none less than over fewer.

    Rows are as they are when answers are drafted: of different lengths, and with what more than a
    column each there is in every second of them, unless all are padded to one width.  Each number
    has its turn before any has its next, so that other work disturbs all alike, up and down, so
    that none follows the widest every time.
    """
    batch = CachedBatch(model, "dynamic")
    vocabulary = model.config.vocab_size
    for _ in range(rows):
        batch.add_row()
    batch.reserve(USUAL_CONTEXT + DRAFTING * max(COLUMNS), rows)
    widths = [each for each in COLUMNS if each == 1 or rows * each <= MOST_COLUMNS]
    times: dict[int, list[float]] = {columns: [] for columns in widths}
    reader = ColumnReader()
    with torch.inference_mode():
        for row in range(rows):
            length = max(1, context_of(model) * (rows + row + 1) // (2 * rows))
            batch.read(slice(row, row + 1), [[n % vocabulary for n in range(length)]], [])
        for turn in range(REPEATS):
            for columns in widths if turn % 2 else widths[::-1]:
                sizes = sizes_of(rows, columns) if batch.flattens else [columns] * rows
                asked = [Columns.chain([1] * size) for size in sizes]
                start = clock(model.device)
                reader.read(batch, slice(0, rows), asked, ())
                times[columns].append(clock(model.device) - start)
    return ascending([(rows * n, max(min(each), 1e-9)) for n, each in times.items()])


def sizes_of(rows: int, columns: int) -> list[int]:
    """Columns of each row where all rows have so many on average, and every second of them one."""
    drafting = -(-rows // DRAFTING)
    share, rest = divmod(rows * (columns - 1), drafting)
    extra = [share + (place < rest) for place in range(drafting)]
    return [1 + (extra[row // DRAFTING] if row % DRAFTING == 0 else 0) for row in range(rows)]


def ascending(points: Points) -> Points:
    """The same, where more columns took less time at their price: what disturbs a measurement
    makes it longer."""
    lowest = itertools.accumulate((seconds for _, seconds in reversed(points)), min)
    return [(n, seconds) for (n, _), seconds in zip(points, [*lowest][::-1], strict=True)]


def context_of(model: PreTrainedModel) -> int:
    """Entries a row that is measured has: fewer where the model knows no more positions."""
    longest = getattr(model.config, "max_position_embeddings", None)
    most = longest - DRAFTING * max(COLUMNS) if isinstance(longest, int) else USUAL_CONTEXT
    return max(1, min(USUAL_CONTEXT, most))


def clock(device: torch.device) -> float:
    """Now, in seconds of the device: a CPU's by what this process had of it."""
    if device.type == "cpu":
        return time.process_time() / torch.get_num_threads()
    synchronize(device)
    return time.perf_counter()
