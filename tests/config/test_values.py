"""What is beyond all use is refused, whatever the flag; sizes are read as they are written."""

from dataclasses import fields
from typing import get_type_hints

import pytest

from lightstride import cli
from lightstride.config import BenchConfig, PruneConfig
from lightstride.config.values import parse_size, problem, size_text
from lightstride.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("damping", float("inf"), "a finite number"),
        ("anything", (1.0, float("nan")), "a finite number"),
        ("anything", 10**13, "at most 1,000,000,000,000"),
        ("batch", (1, 99999999999), "from 1 to 65,536"),
        ("seed", -1, "from 0 to 4,294,967,295"),
        ("learning_rate", 1e30, "from 0 to 1"),
        ("model", "", "the name of a model"),
        ("against", "https://huggingface.co/a/b", "a folder, a file, or an id on the hub alone"),
        ("output", "", "the name of a file or folder"),
        ("damping", 0.01, None),
        ("resume", True, None),
        ("against", None, None),
    ],
)
def test_what_is_beyond_all_use(name: str, value: object, wanted: str | None) -> None:
    found = problem(name, value)
    assert found is None if wanted is None else (found or "").startswith(wanted)


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name not in ("report",)])
def test_no_flag_takes_an_endless_number(command: str) -> None:
    kind = cli.COMMANDS[command]
    given = {"model": "m", "models": ("m",), "output": "o", "sparsity": (0.5,), "prompt": "x"}
    needed = {key: value for key, value in given.items() if key in {f.name for f in fields(kind)}}
    if kind is BenchConfig:
        del needed["prompt"]
    hints = get_type_hints(kind)
    for field in fields(kind):
        if "float" in str(hints[field.name]) and "Literal" not in str(hints[field.name]):
            endless = float("inf")
            value = (endless,) if "tuple" in str(hints[field.name]) else endless
            with pytest.raises(ConfigError, match="inf is not allowed: it must be"):
                kind(**{**needed, field.name: value})


def test_the_flag_is_named_as_it_is_given() -> None:
    for changes, said in (
        ({"model": ""}, "MODEL '' is not allowed: it must be the name of a model"),
        ({"output": ""}, "-o '' is not allowed: it must be the name of a file or folder"),
        ({"heal_rate": 2.0}, "--heal-rate 2.0 is not allowed: it must be from 0 to 1"),
    ):
        with pytest.raises(ConfigError) as error:
            PruneConfig(**{"model": "m", "output": "o", "sparsity": (0.5,), **changes})  # type: ignore[arg-type]
        assert str(error.value) == said


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GiB", 20 << 30), ("500MB", 500_000_000), ("1.5 gib", 3 << 29), ("7 B", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size("--memory", text) == size


@pytest.mark.parametrize("text", ["", "20", "GiB", "-1GiB", "0MB", "nanGB", "1e3MB", "9999999TB"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--memory .* such as 20GiB"):
        parse_size("--memory", text)


def test_a_size_is_rounded_up_so_that_it_is_enough() -> None:
    for size in (1, 3 << 30, 123_456_789_012):
        assert size <= parse_size("--memory", size_text(size)) < size + (1 << 24)
