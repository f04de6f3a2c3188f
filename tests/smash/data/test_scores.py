"""Scores of answers: as from the whole logits, however batched, sharded or killed."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from helpers.agree import assert_same_greedy
from helpers.toys import TINY, byte_tokenizer, tiny_llama
from lightstride.data.prompts import Message, make_prompt
from lightstride.errors import ConfigError, OutputError, WorkError
from lightstride.files import append_lines
from lightstride.generate import PlainDecoder
from lightstride.models import sliced_logits as logits
from lightstride.smash.data import scores as module
from lightstride.smash.data.answers import Answer, read_answers, write_answers
from lightstride.smash.data.examples import SCORES, load_examples, split_held_out
from lightstride.smash.data.scores import (
    Scores,
    batches_of,
    read_scores,
    score_answers,
    token_scores,
)


def make_answers(count: int = 17) -> list[Answer]:
    """Answers of random tokens and various lengths."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(1 + 5 * n % 9, 1 + 7 * n % 12) for n in range(count)]
    drawn = [torch.randint(0, 250, (p + a,), generator=generator).tolist() for p, a in sizes]
    return [
        Answer(f"{n:03}", "chat", tuple(row[:p]), tuple(row[p:]), sampled=False, finish="stop")
        for n, (row, (p, _)) in enumerate(zip(drawn, sizes, strict=True))
    ]


ANSWERS = make_answers()


@torch.inference_mode()
def plain_scores(model: PreTrainedModel, answer: Answer, top_k: int) -> Scores:
    """The plain twin: one answer, all logits at once."""
    tokens_1L = torch.tensor([[*answer.prompt, *answer.answer]])
    logits_AV = model(tokens_1L).logits[0, len(answer.prompt) - 1 : -1].float()
    probabilities_AV = logits_AV.softmax(-1)
    said_A = torch.tensor(answer.answer)
    found = {
        "entropy": torch.distributions.Categorical(probs=probabilities_AV).entropy(),
        "top_probability": probabilities_AV.amax(-1),
        "greedy": logits_AV.argmax(-1),
        "log_probability": probabilities_AV.gather(1, said_A[:, None])[:, 0].log(),
    }
    if top_k:
        top = probabilities_AV.log().topk(top_k)
        found |= {"top_ids": top.indices, "top_log_probabilities": top.values}
    return found


@torch.inference_mode()
def assert_as_likely(
    model: PreTrainedModel, answer: Answer, found_AK: torch.Tensor, expected_AK: torch.Tensor
) -> None:
    """The same tokens at every place, or others that are as likely but for rounding."""
    tokens_1L = torch.tensor([[*answer.prompt, *answer.answer]])
    logits_AV = model(tokens_1L).logits[0, len(answer.prompt) - 1 : -1].float()
    ones, others = (logits_AV.gather(1, ids.long()) for ids in (found_AK, expected_AK))
    torch.testing.assert_close(ones, others, rtol=0, atol=1e-3)
    assert all(len(set(row)) == len(row) for row in found_AK.tolist())


@pytest.mark.parametrize("family", TINY)
def test_scores_are_those_of_the_whole_logits(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(logits.SLICE_BYTES, "cpu", 7 * 4 * 260)
    model = TINY[family]()
    score_answers(model, ANSWERS, tmp_path, top_k=4, batch_tokens=60)
    found = read_scores(tmp_path)
    assert sorted(found) == [each.id for each in ANSWERS]
    for each in ANSWERS:
        expected = plain_scores(model, each, 4)
        assert found[each.id].keys() == expected.keys()
        for name, tensor in expected.items():
            got = found[each.id][name]
            assert got.dtype == module.DTYPES[name]
            if name not in ("greedy", "top_ids"):
                torch.testing.assert_close(got.to(tensor), tensor, rtol=2e-3, atol=2e-4)
        for name in ("greedy", "top_ids"):
            ids, others = (
                some[name].view(len(each.answer), -1) for some in (found[each.id], expected)
            )
            assert_as_likely(model, each, ids, others)


def test_what_is_certain_has_no_entropy() -> None:
    certain_1V = torch.tensor([[200.0, 0.0, -torch.inf]])
    found = token_scores(certain_1V, torch.tensor([0]), 0)
    assert found["entropy"].tolist() == [0.0]
    assert found["top_probability"].tolist() == [1.0]
    assert set(found) == {"entropy", "top_probability", "log_probability", "greedy"}


def test_batches_hold_what_they_may() -> None:
    batches = list(batches_of(ANSWERS, 40))
    assert [each for batch in batches for each in batch] == ANSWERS
    widths = [max(len(a.prompt) + len(a.answer) for a in batch) for batch in batches]
    assert all(len(b) * w <= 40 for b, w in zip(batches, widths, strict=True))
    assert [len(batch) for batch in batches_of(ANSWERS, 1)] == [1] * len(ANSWERS)


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_TOKENS", 20)
    model = tiny_llama()
    score_answers(model, ANSWERS, tmp_path / "whole")
    shards = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(shards) > 4
    calls = 0

    def dying(*arguments: object) -> list[Scores]:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return score_batch(*arguments)  # type: ignore[arg-type]

    score_batch = module.score_batch
    monkeypatch.setattr(module, "score_batch", dying)
    with pytest.raises(KeyboardInterrupt):
        score_answers(model, ANSWERS, tmp_path / "killed")
    (tmp_path / "killed" / "00003.safetensors").write_bytes(b"half of a shard")
    before = len(read_scores(tmp_path / "killed"))
    assert 0 < before < len(ANSWERS)
    score_answers(model, ANSWERS, tmp_path / "killed")
    for name in shards:
        whole, resumed = (tmp_path / run / name for run in ("whole", "killed"))
        assert whole.read_bytes() == resumed.read_bytes()


def test_more_answers_are_added(tmp_path: Path) -> None:
    model = tiny_llama()
    score_answers(model, ANSWERS[:5], tmp_path)
    score_answers(model, ANSWERS, tmp_path)
    score_answers(model, ANSWERS, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert sorted(read_scores(tmp_path)) == [each.id for each in ANSWERS]


def test_scores_of_another_run_are_refused(tmp_path: Path) -> None:
    score_answers(tiny_llama(), ANSWERS[:2], tmp_path)
    with pytest.raises(WorkError, match="of another run: base differs"):
        score_answers(tiny_llama(seed=1), ANSWERS[:2], tmp_path)
    with pytest.raises(WorkError, match="of another run: top_k differs"):
        score_answers(tiny_llama(), ANSWERS[:2], tmp_path, top_k=3)
    with pytest.raises(ConfigError, match="top_k is -1"):
        score_answers(tiny_llama(), ANSWERS[:2], tmp_path, top_k=-1)


def test_damaged_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"index\.json is missing"):
        read_scores(tmp_path)
    score_answers(tiny_llama(), ANSWERS[:3], tmp_path)
    shard, index = tmp_path / "00000.safetensors", tmp_path / "index.json"
    text, data = index.read_text(), shard.read_bytes()
    index.write_text(text.replace('"lengths": [', '"lengths": [1, '))
    with pytest.raises(WorkError, match=r"index\.json is damaged"):
        read_scores(tmp_path)
    index.write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(WorkError, match="is of version 2; this is 1"):
        read_scores(tmp_path)
    for broken in (text[:-9], "[]", "{}"):
        index.write_text(broken)
        with pytest.raises(WorkError, match=r"index\.json is damaged"):
            read_scores(tmp_path)
    index.write_text(text)
    shard.write_bytes(data[:-7])
    with pytest.raises(WorkError, match=r"00000\.safetensors is damaged"):
        read_scores(tmp_path)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OutputError, match=r"cannot write .*00000.*: no space left on the disk"):
        score_answers(tiny_llama(), ANSWERS, tmp_path)
    assert not list(tmp_path.iterdir())


def asked(folder: Path, model: PreTrainedModel, names: Sequence[str]) -> None:
    """Answers to some prompts, in a work folder."""
    prompts = [make_prompt([Message("user", name)], "chat") for name in names]
    write_answers(PlainDecoder(model, byte_tokenizer()), prompts, folder, max_new_tokens=6)


def test_examples_are_answers_with_their_scores(tmp_path: Path) -> None:
    model = tiny_llama()
    asked(tmp_path, model, "abcd")
    answers = read_answers(tmp_path)
    score_answers(model, answers, tmp_path / SCORES, top_k=2)
    examples = load_examples(tmp_path)
    assert [each.id for each in examples] == [each.id for each in answers]
    for example, answer in zip(examples, answers, strict=True):
        assert tuple(example.prompt_P.tolist()) == answer.prompt
        assert tuple(example.answer_A.tolist()) == answer.answer
        prompt = example.prompt_P.tolist()  # the answers are greedy
        assert_same_greedy(model, prompt, example.greedy_A.tolist(), example.answer_A.tolist())
        assert example.entropy_A.shape == example.greedy_A.shape


def test_examples_need_all_scores(tmp_path: Path) -> None:
    model = tiny_llama()
    asked(tmp_path, model, "ab")
    first = read_answers(tmp_path)
    score_answers(model, first, tmp_path / SCORES)
    assert len(load_examples(tmp_path)) == len(first)
    asked(tmp_path, model, "abcd")
    with pytest.raises(WorkError, match=r"2 answers in .* have no scores yet"):
        load_examples(tmp_path)
    longer = Answer(**{**vars(first[0]), "answer": (*first[0].answer, 5)})
    append_lines(tmp_path / "answers.jsonl", [json.dumps(vars(longer))])
    score_answers(model, read_answers(tmp_path), tmp_path / SCORES)
    with pytest.raises(WorkError, match="are of another answer: delete the folder"):
        load_examples(tmp_path)


def test_the_split_never_moves(tmp_path: Path) -> None:
    model = tiny_llama()
    asked(tmp_path, model, [str(number) for number in range(30)])
    score_answers(model, read_answers(tmp_path), tmp_path / SCORES)
    examples = load_examples(tmp_path)
    train, held_out = split_held_out(examples, 0.3)
    assert 3 < len(held_out) < 16
    assert {e.id for e in train} | {e.id for e in held_out} == {e.id for e in examples}
    assert {e.id for e in split_held_out(examples[::2], 0.3)[1]} <= {e.id for e in held_out}
    assert {e.id for e in held_out} <= {e.id for e in split_held_out(examples, 0.6)[1]}
    assert split_held_out(examples, 0.0) == (examples, [])
