"""Tables of costs: lines between what was measured, kept by model and machine, measured anew."""

import gc
import json
from pathlib import Path
from weakref import ref

import pytest
import torch
from transformers import PreTrainedModel

from helpers.toys import tiny_llama
from lightstride.smash.decode import costs
from lightstride.smash.decode.costs import CostTable, between, costs_of, describe

MEASURED = costs.measure_forwards


def linear(rows: int) -> list[tuple[int, float]]:
    """Seconds of a machine that needs 1 and 0.1 for each column."""
    return [(rows * columns, 1 + 0.1 * rows * columns) for columns in (1, 4, 8)]


def use(model: PreTrainedModel) -> None:
    """Ask for a cost of the model."""
    costs_of(model).seconds(1, 1)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (1, 20), (4, 8), (16, 100)])
def test_between_points_are_lines(rows: int, columns: int) -> None:
    table = CostTable(linear)
    assert table.seconds(rows, columns) == pytest.approx(1 + 0.1 * columns)
    assert table.curve(rows, columns)[columns] == pytest.approx(1 + 0.1 * columns)


def test_rows_between_those_measured_cost_something_between() -> None:
    table = CostTable(linear)
    assert table.seconds(4, 4) < table.seconds(6, 6) < table.seconds(16, 16)
    assert table.seconds(128, 128) == pytest.approx(2 * table.seconds(64, 64))
    assert between([(2, 1.0)], 4) == 2


def test_a_measurement_that_was_disturbed_is_held_to_those_of_more_columns() -> None:
    measured = [(1, 1.0), (2, 3.0), (4, 1.2), (8, 1.6), (16, 1.5)]
    assert costs.ascending(measured) == [(1, 1.0), (2, 1.2), (4, 1.2), (8, 1.5), (16, 1.5)]


def test_only_what_is_needed_is_measured() -> None:
    asked: list[int] = []
    table = CostTable(lambda rows: asked.append(rows) or linear(rows))
    table.seconds(1, 5)
    assert asked == [1]
    table.seconds(2, 5)
    assert asked == [1, 4]
    table.complete()
    assert asked == [1, 4, 16, 64]
    assert len(table.lines()) == 4


def test_a_table_is_kept_by_model_machine_threads_and_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path))
    asked: list[int] = []
    monkeypatch.setattr(
        costs, "measure_forwards", lambda _, rows: asked.append(rows) or linear(rows)
    )
    use(tiny_llama())
    use(tiny_llama())
    assert asked == [1]
    (kept,) = (tmp_path / "costs").iterdir()
    use(tiny_llama().bfloat16())
    monkeypatch.setattr(costs, "processor", lambda: "another machine")
    use(tiny_llama())
    assert asked == [1, 1, 1]
    monkeypatch.undo()
    monkeypatch.setenv("LIGHTSTRIDE_CACHE", str(tmp_path))
    monkeypatch.setattr(
        costs, "measure_forwards", lambda _, rows: asked.append(rows) or linear(rows)
    )
    for damage in ('{"format": 2', json.dumps({**json.loads(kept.read_text()), "format": 1})):
        kept.write_text(damage)
        use(tiny_llama())
    assert asked == [1] * 5
    assert describe(tiny_llama()) != describe(tiny_llama(tied=False))


def test_a_folder_that_cannot_be_written_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "costs").write_text("a file")
    table = CostTable(linear, tmp_path / "costs" / "x.json")
    assert table.seconds(1, 1) == pytest.approx(1.1)
    assert table.path is None


def test_what_is_measured_ascends_and_keeps_no_model() -> None:
    model = tiny_llama()
    points = MEASURED(model, 4)
    assert [columns for columns, _ in points] == [4, 8, 16, 32, 64, 128]
    seconds = [each for _, each in points]
    assert seconds == sorted(seconds)
    assert min(seconds) > 0
    costs_of(model).seconds(1, 1)
    held = ref(model)
    del model
    gc.collect()
    assert held() is None
    assert torch.is_inference_mode_enabled() is False


@pytest.mark.parametrize("rows", costs.ROWS)
@pytest.mark.parametrize("columns", costs.COLUMNS)
def test_every_second_row_has_what_is_more_than_a_column_each(rows: int, columns: int) -> None:
    sizes = costs.sizes_of(rows, columns)
    assert len(sizes) == rows
    assert sum(sizes) == rows * columns
    assert set(sizes[1::2]) <= {1}
    assert max(sizes) <= costs.DRAFTING * max(costs.COLUMNS)


@pytest.mark.parametrize(("attention", "widest"), [("sdpa", 5), ("eager", 3)])
def test_rows_that_are_padded_are_measured_alike(
    attention: str, widest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    read = costs.ColumnReader.read

    def note(self: costs.ColumnReader, batch, rows, asked, taps):
        seen.append([len(each.tokens) for each in asked])
        return read(self, batch, rows, asked, taps)

    monkeypatch.setattr(costs.ColumnReader, "read", note)
    monkeypatch.setattr(costs, "COLUMNS", (1, 3))
    model = tiny_llama()
    model.set_attn_implementation(attention)
    MEASURED(model, 4)
    assert max(map(max, seen)) == widest
    assert {sum(sizes) for sizes in seen} == {4, 12}
