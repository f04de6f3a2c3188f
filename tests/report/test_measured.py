"""Numbers of results are read with types and ranges."""

import json
from pathlib import Path

import pytest

from helpers.reports import write_runs
from lightstride.errors import DataError
from lightstride.report.facts import read_folders


@pytest.mark.parametrize(
    ("kind", "path", "value", "message"),
    [
        ("bench", ("model", "loads", 0, "decode_tokens_per_second"), {"low": 1}, "median"),
        ("bench", ("model", "loads", 0, "tokens_per_step"), -1, "tokens_per_step"),
        ("pruned", ("sizes", 0, "plan"), "3x3,9999|" + "|".join(["3x3,1536"] * 29), "keeps more"),
        ("evaluation", ("retained", "piqa", "ratio"), "much", "ratio"),
    ],
)
def test_numbers_out_of_range_are_named(
    kind: str, path: tuple, value: object, message: str, tmp_path: Path
) -> None:
    runs = write_runs(tmp_path)
    file = runs / kind / "result.json"
    document = json.loads(file.read_text())
    place = document["numbers"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    file.write_text(json.dumps(document))
    with pytest.raises(DataError, match=rf"no whole result of .*{message}"):
        read_folders([str(runs)])
