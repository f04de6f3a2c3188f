"""Files of commit 502c339, in `tests/old`: today's package opens them, and goes on from them.

`tests/old/make.py` says how they were made.  The thin grafts of then merged into gists; of them the
drafts are left.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.agree import assert_close_logits, assert_no_ties
from lightstride import cli
from lightstride.checkpoint import open_decoder, read_record
from lightstride.generate import Settings, generate
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import load_model
from lightstride.models.opening.source import Resident
from lightstride.models.shapes import AttentionShape, FFNShape, Site
from lightstride.prune.cut.supernet import Supernet, build_supernet
from lightstride.prune.space.plan import Plan
from lightstride.search.evaluation_log import read_evaluations
from lightstride.smash.data.answers import read_answers
from lightstride.smash.data.scores import read_scores
from lightstride.smash.hub import SmashModel

OLD = Path(__file__).parent / "old"
EXPECTED = json.loads((OLD / "expected.json").read_text("utf-8"))
TOKENS = torch.arange(40, 60)[None]
PROMPT = [72, 101, 108, 108, 111]
PRUNE = (
    "prune dense -o again --sparsity 0.4 --preset demo --calibration text.jsonl --window 32 "
    "--calibration-tokens 512 --search-tokens 512 --held-out-tokens 256 --rounds 2 "
    "--generations 2 --offspring 4 --multiple 8 --device cpu --dtype float32"
)
GONE_MODES = {"thin": ("trust", "verify"), "paper": ("verify",)}
SMASH = (
    "smash dense -o again --prompts prompts.jsonl --preset demo --steps 4 --answer-tokens 12 "
    "--row-tokens 80 --held-out 0.2 --max-segment 3 --device cpu --dtype float32"
)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The old files, where they may be written to; the current folder."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


@torch.no_grad()
@pytest.mark.parametrize("name", EXPECTED)
def test_checkpoints_say_what_they_said(name: str) -> None:
    decoder = open_decoder(str(OLD / name))
    logits = decoder.model(TOKENS).logits[0, -1, :80]
    assert_close_logits(logits, torch.tensor(EXPECTED[name]["logits"]))
    for mode, steps in EXPECTED[name]["answers"].items():
        if mode in GONE_MODES.get(name, ()):
            continue
        settings = Settings(max_new_tokens=16, mode=mode, confidence=0.3)
        assert_no_ties(decoder, [PROMPT], settings)
        (answer,) = generate(decoder, [PROMPT], settings)
        found = [list(step) for step in answer.steps]
        if mode == "lossless":  # how many tokens a step tries is the budget's, not the file's
            found, steps = [[token for step in each for token in step] for each in (found, steps)]
        assert found == steps


def test_grafts_with_gists_draft_and_say_in_a_line_that_they_do_no_more(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "thin", "-p", "hello", "--max-new-tokens", "4", "--json"]
    assert cli.main(words) == 0
    found = capsys.readouterr()
    assert json.loads(found.out)["tokens"] == 4
    said = [line for line in found.err.splitlines() if "earlier version" in line]
    assert len(said) == 1
    assert "the drafts are used" in said[0]
    assert cli.main([*words, "--mode", "trust"]) == 2
    assert "these grafts draft and do not merge" in capsys.readouterr().err
    model = SmashModel.from_pretrained(copy / "thin")
    model.save_pretrained(copy / "again")
    kept, stored = (load_file(copy / name / "model.safetensors") for name in ("again", "thin"))
    assert kept.keys() == {name for name in stored if not name.startswith("embedder.")}
    assert all(torch.equal(tensor, stored[name]) for name, tensor in kept.items())
    config = json.loads((copy / "again" / "config.json").read_text("utf-8"))
    assert config["mode"] == "lossless"
    assert not {"gist", "adapter_rank", "adapter_alpha"} & config.keys()
    capsys.readouterr()
    SmashModel.from_pretrained(copy / "again")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["uneven", "even"])
def test_plans_are_read(name: str) -> None:
    plan = Plan.from_json(read_record(OLD / name)["plan"])
    model = load_model(str(OLD / name))
    geometry = adapter_for(model.config).geometry(model.config)
    assert {site: geometry.shape(site) for site in geometry.sites} == dict(plan.shapes)
    assert type(model).__name__.startswith("Layered") is (name == "uneven")


def test_a_supernet_is_read_and_would_be_built_again(tmp_path: Path) -> None:
    model = load_model(str(OLD / "dense"))
    adapter = adapter_for(model.config)
    old = Supernet.open(OLD / "supernet", Resident(model))
    tokens = torch.randint(256, (8, 16), generator=torch.Generator().manual_seed(0))
    shapes = {site: old.shapes(site) for site in adapter.geometry(model.config).sites}
    assert shapes[Site(1, "attention")] == (AttentionShape(1, 1), AttentionShape(2, 2))
    assert shapes[Site(0, "ffn")] == (FFNShape(8), FFNShape(16), FFNShape(24))
    centre = {site: some[0] for site, some in shapes.items()}
    new = build_supernet(
        Resident(model), tokens, shapes, centre, tmp_path / "net", weigh_tokens=False
    )
    for site, some in shapes.items():
        for shape in some:
            ours, theirs = new.load(site, shape), old.load(site, shape)
            assert ours.kept == theirs.kept
            torch.testing.assert_close(ours.output_OK, theirs.output_OK, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("searches_again", [False, True])
def test_a_pruning_run_is_gone_on_with(copy: Path, searches_again: bool) -> None:
    """With its rounds as they are, or with the log of its evaluations alone."""
    searched = (copy / "uneven.work" / "search.jsonl").read_bytes()
    assert len(read_evaluations(copy / "uneven.work" / "search.jsonl")) == 27
    if searches_again:
        for path in (copy / "uneven.work").glob("*-40.json"):
            path.unlink()
    assert cli.main([*PRUNE.split(), "--work", "uneven.work", "--resume"]) == 0
    found, expected = (read_record(copy / name)["plan"] for name in ("again", "uneven"))
    assert found == expected
    assert (copy / "again" / "search.jsonl").read_bytes() == searched


def test_answers_and_scores_are_read() -> None:
    answers = read_answers(OLD / "thin.work")
    scores = read_scores(OLD / "thin.work" / "scores")
    assert len(answers) == 24
    assert scores.keys() == {each.id for each in answers}
    for each in answers:
        assert scores[each.id]["log_probability"].shape == (len(each.answer),)


def test_answers_of_a_smashing_run_are_gone_on_with(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its training taught merging, which is gone: that is refused; answers and scores are not."""
    command = [*SMASH.split(), "--work", "thin.work", "--resume"]
    answered = (copy / "thin.work" / "answers.jsonl").read_bytes()
    assert cli.main(command) == 2
    assert "is of another training; delete it to train anew" in capsys.readouterr().err
    (copy / "thin.work" / "training.safetensors").unlink()
    assert cli.main(command) == 0
    assert (copy / "thin.work" / "answers.jsonl").read_bytes() == answered
    names = load_file(copy / "again" / "model.safetensors")
    assert {name.split(".")[0] for name in names} == {"micro", "stop"}
