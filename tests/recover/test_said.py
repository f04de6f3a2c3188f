"""What was said of rows, on disk: the same again, or not there."""

from pathlib import Path

import torch

from lightstride.recover.said import SaidRows
from lightstride.training.top_k_kl import Teacher, remember

TOKENS_L = torch.arange(5, dtype=torch.int32)
LARGE = 1 << 20


def said() -> Teacher:
    return remember(torch.randn(5, 30), 4)


def test_what_is_kept_is_known_again_by_another_process(tmp_path: Path) -> None:
    expected = said()
    SaidRows(tmp_path / "said", LARGE).keep(3, TOKENS_L, expected)
    rows = SaidRows(tmp_path / "said", LARGE)
    found = rows.recall(3, TOKENS_L.long())
    assert found is not None
    assert torch.equal(found.token_NK, expected.token_NK)
    assert torch.equal(found.log_rest_N, expected.log_rest_N)
    assert rows.recall(2, TOKENS_L) is None
    assert rows.recall(3, TOKENS_L + 1) is None
    rows.forget()
    assert not (tmp_path / "said").exists()


def test_a_damaged_file_is_not_there(tmp_path: Path) -> None:
    rows = SaidRows(tmp_path, LARGE)
    rows.keep(0, TOKENS_L, said())
    path = rows.path(0)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert rows.recall(0, TOKENS_L) is None
    path.write_bytes(content[:40])
    assert rows.recall(0, TOKENS_L) is None


def test_no_more_is_kept_than_is_allowed_earlier_runs_included(tmp_path: Path) -> None:
    size = 5 * Teacher.bytes_per_position(4)
    for number in range(3):
        SaidRows(tmp_path, 2 * size + 500).keep(number, TOKENS_L, said())
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["0", "1"]
