"""Results: complete, validated on reading, whole or not there."""

import json
from pathlib import Path

import pytest

from lightstride.errors import DataError, OutputError
from lightstride.files import write_json
from lightstride.results import Result, markdown_table, read_result, write_result


def write(path: Path, **numbers: object) -> Result:
    return write_result(
        path,
        kind="prune",
        numbers=numbers,
        config={"sparsity": (0.25,)},
        command=["lightstride", "prune"],
        seed=0,
        data={"pydoc": "ab"},
    )


def test_reads_what_it_wrote(tmp_path: Path) -> None:
    written = write(tmp_path / "new" / "result.json", perplexity=20.5)
    assert read_result(tmp_path / "new" / "result.json") == written
    assert written["config"] == {"sparsity": [0.25]}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["result.json"]


def test_says_where_it_comes_from(tmp_path: Path) -> None:
    result = write(tmp_path / "result.json")
    assert result["versions"]["torch"].startswith("2.")
    assert result["hardware"]["cores"] >= 1
    assert result["hardware"]["memory_bytes"] > 2**28
    assert result["hardware"]["cpu"]
    assert result["commit"] is None or len(result["commit"].rstrip("+")) == 40
    assert result["created"].endswith("+00:00")


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    result = write(tmp_path / "result.json", perplexity=float("inf"), runs=[1.0, float("nan")])
    assert result["numbers"] == {"perplexity": None, "runs": [1.0, None]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "has schema 2; this version reads 1"),
        ({"schema": None}, "has schema None"),
        ({"speed": 1}, "has the unknown speed"),
        ({"numbers": 3}, r"is not a result: .*numbers"),
    ],
)
def test_refuses_what_is_not_a_result(change: dict[str, object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {**write(path), **change})
    with pytest.raises(DataError, match=said):
        read_result(path)


def test_refuses_a_result_without_its_origin(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    written = dict(write(path))
    del written["hardware"], written["seed"]
    write_json(path, written)
    with pytest.raises(DataError, match="lacks hardware, seed"):
        read_result(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"numbers": {}})])
def test_refuses_other_files(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=r"x\.json(: | is not )"):
        read_result(tmp_path / "x.json")
    with pytest.raises(DataError, match=r"cannot read .*none\.json: No such file"):
        read_result(tmp_path / "none.json")


def test_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write(tmp_path / "file" / "result.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"x": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_table_is_aligned() -> None:
    assert markdown_table(["Model", "Size"], [["dense", "1"], ["25%", "1000"]]).splitlines() == [
        "| Model | Size |",
        "|-------|-----:|",
        "| dense |    1 |",
        "| 25%   | 1000 |",
    ]
