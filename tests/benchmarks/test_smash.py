"""benchmarks/smash.py on toys: what it counts, compares, leaves out and refuses."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from helpers.benchmark import load_benchmark
from helpers.smash_toys import sharp, toy
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.checkpoint import save_checkpoint
from lightstride.generate import PlainDecoder, Settings, generate
from lightstride.results import read_result
from lightstride.smash.data.answers import read_answers, write_answers

benchmark = load_benchmark("smash")

QUESTIONS = [f"What is {n} + {n}?" for n in range(6)]
FLAGS = "--new-tokens 10 --prompts 5 --batches 1 2 --repeats 2 --confidences 0.2 0.9"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smashed toy with its base, and questions."""
    folder = tmp_path_factory.mktemp("smash")
    base = sharp(tiny_llama(tied=False))
    save_checkpoint(base, byte_tokenizer(), folder / "base")
    model = toy(base)
    model.config.base = str(folder / "base")
    save_checkpoint(model, byte_tokenizer(), folder / "smashed")
    lines = [json.dumps({"question": question}) for question in QUESTIONS]
    (folder / "maths.jsonl").write_text("\n".join(lines))
    return folder


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: Sequence[str], model: str = "smashed"
) -> int:
    """The exit code of one command line."""
    monkeypatch.setattr(sys, "argv", ["smash.py", str(folder / model), *FLAGS.split(), *words])
    code: int = benchmark.main()
    return code


def test_every_mode_is_measured_against_the_base(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder / "result.json"
    source = str(folder / "maths.jsonl")
    assert run(folder, monkeypatch, ["--maths", source, "--output", str(output)]) == 0
    numbers = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert read_result(output)["numbers"] == numbers
    maths = numbers["domains"]["maths"]
    assert maths["num_prompts"] == 5
    modes = maths["modes"]
    assert list(modes) == ["lossless", "ar", "trust20", "trust90"]
    for name in ("ar", "lossless"):
        assert modes[name]["nats_per_token_over_base"] == pytest.approx(0, abs=1e-6)
        assert modes[name]["leading"] == modes[name]["aligned"] == modes[name]["same"] == 1
        assert modes[name]["kv_per_token"] == pytest.approx(0.9, abs=0.1)
    assert modes["ar"]["tokens_per_step"] == 1
    assert modes["trust20"]["tokens_per_step"] > modes["trust90"]["tokens_per_step"] >= 1
    assert modes["trust20"]["kv_per_token"] < modes["trust90"]["kv_per_token"] <= 1
    assert modes["trust20"]["nats_per_token_over_base"] > 0
    for row in modes.values():
        assert 0 <= row["leading"] <= row["aligned"] <= 1
        for batch in ("batch1", "batch2"):
            assert set(row[batch]) == {
                "tokens_per_second",
                "plain_tokens_per_second",
                "speedup",
                "speedup_in_processor_time",
                "tokens_per_step",
                "kv_per_token",
            }
    ceilings = maths["oracle"]
    assert set(ceilings) == {"max_segment_4", "max_segment_8"}
    assert (
        1 <= ceilings["max_segment_4"]["decreasing_v2"] <= ceilings["max_segment_4"]["ideal_drafts"]
    )


def test_nats_are_the_bases_own(folder: Path) -> None:
    model = toy(sharp(tiny_llama(tied=False)))
    prompts = [(1, 2, 3), (4, 5)]
    plain = PlainDecoder(model.base, byte_tokenizer())
    answers = [a.tokens for a in generate(plain, prompts, Settings(max_new_tokens=5))]
    expected = []
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            log = model.base(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        expected += [float(log[len(prompt) - 1 + n, token]) for n, token in enumerate(answer)]
    found = benchmark.nats(benchmark.scores_of(model, prompts, answers))
    assert found == pytest.approx(-sum(expected) / len(expected), rel=1e-5)


def test_agreement_counts_the_bases_tokens() -> None:
    found = benchmark.agreement([(1, 2, 9, 3, 4), (5,)], [(1, 2, 3, 4), (5,)])
    assert found == {"leading": 3 / 5, "aligned": 1.0, "same": 0.5}
    assert benchmark.agreement([(7, 8)], [(1, 2)]) == dict.fromkeys(found, 0)


def test_prompts_that_were_trained_on_are_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = PlainDecoder(sharp(tiny_llama(tied=False)), byte_tokenizer())
    source = str(folder / "maths.jsonl")
    prompts = benchmark.read_prompts(source)
    write_answers(decoder, prompts[:4], folder / "work", max_new_tokens=2)
    assert len(read_answers(folder / "work")) == 4
    words = ["--maths", source, "--trained-on", str(folder / "work"), "--modes", "ar"]
    assert run(folder, monkeypatch, words) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["domains"]["maths"]["num_prompts"] == 2
    write_answers(decoder, prompts, folder / "work", max_new_tokens=2)
    assert run(folder, monkeypatch, words) == 2
    assert "were trained on; give others" in capsys.readouterr().err


def test_bad_input_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, monkeypatch, []) == 2
    assert "no prompts were given" in capsys.readouterr().err
    assert run(folder, monkeypatch, ["--chat", str(folder / "maths.jsonl")], model="base") == 2
    assert "is not a smashed model" in capsys.readouterr().err


def test_results_name_no_folder_of_this_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder / "result.json"
    source = str(folder / "maths.jsonl")
    words = ["--modes", "ar", "--maths", source, source, "--output", str(output)]
    assert run(folder, monkeypatch, words) == 0
    assert str(folder) not in output.read_text()
    assert list(read_result(output)["data"]) == ["maths.jsonl"]
    assert capsys.readouterr().out.count("\n") == 1
