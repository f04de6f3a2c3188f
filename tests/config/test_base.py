"""Configurations: checked, complete, documented, and the same after JSON."""

import ast
import dataclasses
import json
from pathlib import Path

import pytest

import lightstride.config as config_room
from lightstride.config import Command, PruneConfig
from lightstride.config.base import PresetCommand, preset_table
from lightstride.errors import ConfigError

COMMANDS = [
    value
    for name in config_room.__all__
    if isinstance(value := getattr(config_room, name), type) and hasattr(value, "example")
]
PRUNE = PruneConfig(model="m", output="out", sparsity=(0.25, 0.5))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_is_a_frozen_value(command: type[Command]) -> None:
    assert command.__doc__.endswith(".")
    assert command.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(command))


@pytest.mark.parametrize("path", sorted(Path(config_room.__file__).parent.glob("*.py")))
def test_a_sentence_stands_under_every_field(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.ClassDef):
            continue
        for field, below in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field):
                assert isinstance(below, ast.Expr), ast.unparse(field)
                assert ast.literal_eval(below.value).endswith("."), ast.unparse(field)


def test_survives_json() -> None:
    text = json.dumps(PRUNE.as_dict())
    assert PruneConfig.from_dict(json.loads(text)) == PRUNE


def test_refuses_an_unknown_key() -> None:
    with pytest.raises(ConfigError, match="no field 'sparsty'"):
        PruneConfig.from_dict({**PRUNE.as_dict(), "sparsty": 0.5})


def test_preset_fills_in_what_is_open_and_nothing_else() -> None:
    chosen = dataclasses.replace(PRUNE, generations=3, preset="demo").resolved()
    assert chosen.generations == 3
    assert chosen.offspring == preset_table()["prune"]["demo"]["offspring"]
    open_fields = set(preset_table()["prune"]["demo"]) - set(PruneConfig.preset_only)
    assert dataclasses.replace(chosen, **dict.fromkeys(open_fields)) == (
        dataclasses.replace(PRUNE, preset="demo")
    )


@pytest.mark.parametrize("command", [PruneConfig])
def test_presets_name_fields_and_leave_none_open(command: type[PresetCommand]) -> None:
    fields = {field.name for field in dataclasses.fields(command)}
    for preset, values in preset_table()[command.command].items():
        assert set(values) - fields == set(command.preset_only)
        resolved = dataclasses.replace(PRUNE, preset=preset).resolved()  # type: ignore[arg-type]
        assert all(getattr(resolved, key) is not None for key in set(values) & fields)
        assert all(resolved.preset_number(key) for key in command.preset_only)


def test_paper_is_what_was_published() -> None:
    paper = dataclasses.replace(PRUNE, preset="paper").resolved()
    assert (paper.rounds, paper.levels, paper.generations, paper.offspring) == (4, 9, 50, 128)
    assert (paper.calibration_tokens, paper.window) == (1024 * 4096, 4096)
    assert (paper.search, paper.split, paper.accumulation) == ("paper", "fixed", "expectation")
    assert (paper.token_weights, paper.correction, paper.damping) == ("equal", 0.0, 0.01)
    assert paper.preset_number("early_share") == 1.0


@pytest.mark.parametrize("sparsity", [(), (0.0,), (1.0,), (-0.5,), (0.5, 0.25), (0.5, 0.5)])
def test_refuses_sparsities(sparsity: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="--sparsity"):
        dataclasses.replace(PRUNE, sparsity=sparsity)
