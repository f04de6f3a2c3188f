"""Sizes are read as they are written."""

import pytest

from lightstride.config.sizes import parse_size, size_text
from lightstride.errors import ConfigError


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
