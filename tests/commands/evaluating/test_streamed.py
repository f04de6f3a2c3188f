"""Models that are too large for `--memory`: the same numbers, and what is refused then."""

import json
import random
from pathlib import Path

import pytest

from helpers.prune_runs import WORDS, make_inputs
from helpers.smash_toys import toy
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride import cli
from lightstride.checkpoint import save_checkpoint
from lightstride.commands.evaluate import evaluate
from lightstride.commands.evaluating import streamed
from lightstride.commands.evaluating.streamed import blockwise, whole_bytes
from lightstride.config import EvaluateConfig
from lightstride.errors import ConfigError
from lightstride.models import passes
from lightstride.prune.footprint import PROGRAM_BYTES


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Toys of many blocks in several files, a text, and two tasks; logits and lm-eval count for
    nothing, and few tokens run at once.
    """
    make_inputs(tmp_path)
    (tmp_path / "model" / "model.safetensors").unlink()
    tiny_llama(num_layers=12).save_pretrained(tmp_path / "model", max_shard_size="100KB")
    save_checkpoint(tiny_llama(seed=1, num_layers=12), byte_tokenizer(), tmp_path / "other")
    draw = random.Random(0)
    for name in ("piqa", "boolq"):
        lines = [
            {
                "query": " ".join(draw.choices(WORDS, k=4)),
                "choices": draw.choices(["yes", "no", "rock", "a light"], k=2),
                "gold": draw.randrange(2),
            }
            for _ in range(10)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    solved = json.dumps({"question": "1 + 1?", "answer": "#### 2"})
    for split in ("train", "test"):
        (tmp_path / f"gsm8k_{split}.jsonl").write_text("\n".join([solved] * 8))
    for name in ("LOGIT_BYTES", "HARNESS_BYTES"):
        monkeypatch.setattr(streamed, name, 0)
    monkeypatch.setattr(streamed, "PASSAGE_TOKENS", 32)
    return tmp_path


def config(folder: Path, **changes: object) -> EvaluateConfig:
    values: dict[str, object] = {
        "model": str(folder / "model"),
        "perplexity": str(folder / "text.jsonl"),
        "task_data": str(folder),
        "window": 32,
        "dtype": "float32",
        "device": "cpu",
        "output": str(folder / "evaluation"),
    }
    return EvaluateConfig(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that were passed, in order."""
    passed: list[int] = []
    original = passes.pass_block

    def note(source: object, index: int, *others: object) -> None:
        passed.append(index)
        original(source, index, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(passes, "pass_block", note)
    return passed


@pytest.mark.parametrize("more", [130_000, 300_000])
def test_perplexity_block_by_block_as_whole(folder: Path, more: int) -> None:
    whole = evaluate(config(folder))["numbers"]["model"]  # type: ignore[index]
    small = config(folder, memory=f"{PROGRAM_BYTES + more}B")
    assert blockwise([small.model], small) is not None
    found = evaluate(small)["numbers"]["model"]  # type: ignore[index]
    for key in ("parameters", "weight_bytes", "source"):
        assert found[key] == whole[key]
    assert found["perplexity"]["num_tokens"] == whole["perplexity"]["num_tokens"]
    assert found["perplexity"]["value"] == pytest.approx(whole["perplexity"]["value"], rel=1e-6)
    assert not list(folder.glob("evaluation.activations*"))


def test_tasks_of_a_model_take_one_pass_over_its_blocks(folder: Path, sweeps: list[int]) -> None:
    asked = {"perplexity": None, "tasks": ("piqa,boolq",), "against": str(folder / "other")}
    whole = evaluate(config(folder, **asked))["numbers"]
    assert not sweeps
    found = evaluate(config(folder, memory=f"{PROGRAM_BYTES + 300_000}B", **asked))["numbers"]
    assert sweeps == [*range(12), *range(12)]
    for model in ("model", "against"):
        ours, theirs = (each[model]["tasks"] for each in (found, whole))  # type: ignore[index]
        assert list(ours) == list(theirs) == ["piqa", "boolq"]
        assert ours == theirs
        assert list(found[model]["seconds"]) == ["tasks"]  # type: ignore[index]
    assert found["retained"] == whole["retained"]  # type: ignore[index]


@pytest.mark.parametrize("more", [250_000, 700_000])
def test_two_models_are_held_against_each_other(folder: Path, more: int) -> None:
    (folder / "passages.jsonl").write_text(json.dumps({"text": " ".join(["a lantern"] * 80)}))
    asked = {
        "perplexity": None,
        "against": str(folder / "other"),
        "fidelity": str(folder / "passages.jsonl"),
    }
    whole = evaluate(config(folder, **asked))["numbers"]
    small = config(folder, memory=f"{PROGRAM_BYTES + more}B", **asked)
    assert blockwise([str(folder / "model"), str(folder / "other")], small) is not None
    found = evaluate(small)["numbers"]
    for key in ("fidelity", "last_words"):
        assert found[key] == pytest.approx(whole[key], rel=1e-5)  # type: ignore[index]
    assert not list(folder.glob("evaluation.activations*"))


def test_what_fits_is_opened_whole(folder: Path) -> None:
    roomy = config(folder, memory="8GiB")
    assert blockwise([roomy.model], roomy) is None
    assert blockwise([roomy.model], config(folder)) is None


def test_fewer_sequences_run_at_once_where_memory_is_short(folder: Path) -> None:
    small, large = (config(folder, memory=f"{PROGRAM_BYTES + b}B") for b in (130_000, 300_000))
    first, second = blockwise([small.model], small), blockwise([large.model], large)
    assert first is not None
    assert second is not None
    assert first.batch_size < second.batch_size < large.batch_size


def test_too_little_is_refused_with_the_least_that_works(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"the least that works is [\d.]+GiB") as caught:
        evaluate(config(folder, memory="1MB"))
    enough = config(folder, memory=str(caught.value).rsplit(" ", 1)[1])
    blockwise([enough.model], enough)


REFUSED = {
    "loops": {"loops": "prompts.jsonl", "against": "other"},
    "instructions": {"instructions": 3, "against": "other"},
    "yardsticks": {"fidelity": "text.jsonl", "yardsticks": ("q8_0",), "against": "other"},
    "gsm8k": {"tasks": ("piqa,gsm8k",)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_answers_need_the_whole_model(folder: Path, name: str, sweeps: list[int]) -> None:
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": "Say 1"}))
    paths = {"loops", "against", "fidelity"}
    given = {k: str(folder / str(v)) if k in paths else v for k, v in REFUSED[name].items()}
    small = config(folder, memory=f"{PROGRAM_BYTES + 300_000}B", **given)
    with pytest.raises(ConfigError, match=rf"--memory .*{name}.* needs the whole"):
        evaluate(small)
    assert not sweeps
    assert not (folder / "evaluation" / "result.json").exists()


def test_a_refusal_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(folder / "model"), "--perplexity", str(folder / "text.jsonl")]
    assert cli.main([*words, "--memory", "1MB", "-o", str(folder / "out")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_models_that_draft_are_read_whole(folder: Path) -> None:
    base = tiny_llama(num_layers=12, tied=False)
    save_checkpoint(base, byte_tokenizer(), folder / "base")
    base.name_or_path = str(folder / "base")
    save_checkpoint(toy(base), byte_tokenizer(), folder / "smashed")
    plain, drafting = (config(folder, model=str(folder / name)) for name in ("base", "smashed"))
    assert whole_bytes(drafting.model, drafting) > whole_bytes(plain.model, plain)
    with pytest.raises(ConfigError, match=r"which drafts, needs the whole of .*smashed"):
        evaluate(config(folder, model=drafting.model, memory=f"{PROGRAM_BYTES + 300_000}B"))
