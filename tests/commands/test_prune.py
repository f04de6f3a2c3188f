"""`lightstride prune` on a toy: what it writes, and what it refuses before it starts."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.prune_runs import config_of, make_inputs
from lightstride.cli import main
from lightstride.commands.prune import prune
from lightstride.config import PruneConfig
from lightstride.errors import LightstrideError
from lightstride.models.shapes import Geometry, Shape
from lightstride.prune.space.plan import Plan
from lightstride.results import read_result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    make_inputs(path)
    return path


@pytest.fixture(scope="module")
def made(folder: Path) -> PruneConfig:
    """A run of two sizes that went well."""
    config = config_of(folder, "made")
    prune(config)
    return config


def test_checkpoints_open_and_are_as_small_as_asked(made: PruneConfig) -> None:
    dense = AutoModelForCausalLM.from_pretrained(made.model)
    for name, share in (("30", 0.3), ("50", 0.5)):
        folder = Path(made.output) / name
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokens = AutoTokenizer.from_pretrained(folder)("hello", return_tensors="pt").input_ids
        assert model(tokens).logits.isfinite().all()
        in_blocks = sum(p.numel() for n, p in dense.named_parameters() if "proj" in n)
        left = sum(p.numel() for n, p in model.named_parameters() if "proj" in n)
        assert left <= (1 - share) * in_blocks
        assert left > (1 - share - 0.06) * in_blocks


def test_records_say_where_everything_came_from(made: PruneConfig) -> None:
    record = json.loads((Path(made.output) / "50" / "lightstride.json").read_text())
    plan = Plan.from_json(record["plan"])
    assert plan.kept is not None
    assert {site: kept.shape for site, kept in plan.kept.items()} == dict(plan.shapes)
    roles = record["data"]
    assert set(roles) == {"calibration", "search", "held_out"}
    documents = [set(role["documents"]) for role in roles.values()]
    assert all(documents)
    assert (
        not documents[0] & documents[1] | documents[0] & documents[2] | documents[1] & documents[2]
    )
    assert roles["calibration"]["num_tokens"] == 512
    assert record["config"]["seed"] == 0


def test_the_result_holds_all_sizes(made: PruneConfig) -> None:
    result = read_result(Path(made.output) / "result.json")
    assert result["kind"] == "prune"
    sizes = result["numbers"]["sizes"]
    assert isinstance(sizes, list)
    assert [size["asked"] for size in sizes] == [0.3, 0.5]
    stages = result["numbers"]["stages"]
    assert isinstance(stages, dict)
    names = {"supernets", "searches", "closing rounds", "perplexities", "saving"}
    assert set(stages) == names
    whole = result["numbers"]["seconds"]
    assert isinstance(whole, float)
    assert 0 < sum(each["seconds"] for each in stages.values()) <= whole
    assert all(each["processor_seconds"] > 0 for each in stages.values())
    for size in sizes:
        assert size["sparsity"] >= size["asked"]
        assert size["perplexity"] > 1
        assert [each["round"] for each in size["rounds"]] == [1, 2]
    lines = (Path(made.output) / "search.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["tokens"] for line in lines) == sum(
        each["tokens"] for size in sizes for each in size["rounds"]
    )


def test_one_size_is_the_output_folder_itself(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(folder, "one", sparsity=(0.5,), search="none")
    prune(config)
    assert (Path(config.output) / "config.json").exists()
    assert not (Path(config.output) / "search.jsonl").exists()
    told = capsys.readouterr()
    assert "| before" in told.out
    assert "minutes on this machine" in told.err


def test_the_papers_settings_run(folder: Path) -> None:
    config = config_of(folder, "paper", preset="paper", sparsity=(0.5,))
    result = prune(config)
    used = result["config"]
    assert isinstance(used, dict)
    assert (used["search"], used["split"], used["accumulation"]) == (
        "paper",
        "fixed",
        "expectation",
    )
    assert (used["token_weights"], used["correction"]) == ("equal", 0.0)
    assert (Path(config.output) / "config.json").exists()


@pytest.mark.parametrize("budget", ["memory", "latency"])
def test_other_budgets(folder: Path, budget: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def table(geometry: Geometry, shapes: list[Shape], *_: object, **__: object) -> object:
        return {shape: 7 * geometry.parameters(shape) + 1000 for shape in shapes}

    monkeypatch.setattr("lightstride.commands.pruning.setup.latency_table", table)
    config = config_of(folder, budget, sparsity=(0.3,), budget=budget, context=64, search="none")
    prune(config)
    assert (Path(config.output) / "config.json").exists()


def test_text_of_the_models_own(folder: Path) -> None:
    config = config_of(
        folder,
        "self",
        sparsity=(0.3,),
        calibration="self",
        search_text=str(folder / "text.jsonl"),
        held_out=str(folder / "text.jsonl"),
        search="none",
    )
    prune(config)
    record = json.loads((Path(config.output) / "lightstride.json").read_text())
    assert record["data"]["calibration"]["source"] == "self"


REFUSED: Mapping[str, tuple[dict[str, object], str]] = {
    "sparsity of one": ({"sparsity": (1.0,)}, "above 0 and below 1"),
    "negative sparsity": ({"sparsity": (-0.5,)}, "above 0 and below 1"),
    "no sparsity": ({"sparsity": ()}, "above 0 and below 1"),
    "unsorted sparsities": ({"sparsity": (0.5, 0.25)}, "ascending"),
    "duplicated sparsities": ({"sparsity": (0.5, 0.5)}, "ascending"),
    "impossible under the floors": (
        {"sparsity": (0.95,)},
        r"between 0\.0000 and 0\.\d+ is possible",
    ),
    "impossible under the target": (
        {"sparsity": (0.5,), "target": "decilm", "multiple": None},
        "target decilm with --tp 1 allows no shape",
    ),
    "a multiple the target cannot have": ({"target": "decilm", "multiple": 8}, "multiples of 256"),
    "more devices than groups": ({"tp": 5}, "allows no shape"),
    "too little text": ({"calibration_tokens": 1_000_000}, "1,000,000 are needed"),
    "too little search text": ({"search_tokens": 1_000_000}, "are needed"),
    "windows too long": ({"window": 4096}, "the model reads at most 512"),
    "no such text": ({"calibration": "nowhere.txt"}, "nowhere.txt"),
    "no such model": ({"model": "nowhere/"}, "nowhere"),
    "output is a file": ({"output": "FOLDER/text.jsonl"}, "is a file"),
    "output is not empty": ({"output": "FOLDER/model"}, "is not empty"),
    "work is not empty": ({"work": "FOLDER/model"}, "belongs to no run"),
    "answers that do not fit": ({"cache_gib": 1e-6}, "MiB are allowed"),
}


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_written(folder: Path, name: str, dry_run: bool) -> None:
    changes, message = REFUSED[name]
    placed = {
        key: value.replace("FOLDER", str(folder)) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    before = sorted(folder.rglob("*"))
    with pytest.raises(LightstrideError, match=message):
        prune(config_of(folder, "refused", dry_run=dry_run, **placed))
    assert sorted(folder.rglob("*")) == before


def test_a_full_disk_is_foreseen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr("lightstride.commands.pruning.setup.shutil.disk_usage", lambda _: usage)
    with pytest.raises(LightstrideError, match="MiB of disk are needed"):
        prune(config_of(folder, "full"))


def test_weights_that_are_not_numbers_are_refused(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(folder / "nan")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "model" / name, folder / "nan" / name)
    with pytest.raises(LightstrideError, match="NaN"):
        prune(config_of(folder, "refused", model=str(folder / "nan")))


def test_the_command_line_says_it_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(folder / "refused")
    arguments = ["prune", str(folder / "model"), "-o", output, "--sparsity", "0.5", "0.25"]
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert "Traceback" not in told.err
    assert not Path(output).exists()
