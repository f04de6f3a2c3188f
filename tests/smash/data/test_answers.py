"""The base's own answers: what a plain decoder says, whatever the batches, kills and full disks."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from helpers.agree import assert_same_greedy
from helpers.smash_toys import sharp
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.data.prompts import Message, Prompt, make_prompt
from lightstride.errors import ConfigError, DataError, ModelError, OutputError, WorkError
from lightstride.files import append_lines
from lightstride.generate import Limits, PlainDecoder, Session, Settings, generate
from lightstride.smash.data.answers import Answer, read_answers, read_log, write_answers

PROMPTS = [
    make_prompt([Message("user", "x" * (1 + 3 * n % 11) + str(n))], "chat") for n in range(23)
]


class KilledError(Exception):
    """Stands for a kill -9."""


class Counting(PlainDecoder):
    """Counts batches, and dies in one of them."""

    num_batches = 0
    dies_in: int | None = None

    def session(self, limits: Limits, *, with_text: bool = True) -> Session:
        self.num_batches += 1
        if self.num_batches == self.dies_in:
            raise KilledError
        return super().session(limits, with_text=with_text)


def ending_llama() -> PreTrainedModel:
    """A toy whose answers end, at different lengths."""
    model = sharp(tiny_llama(tied=False))
    model.config.eos_token_id = [7, 11]
    model.generation_config.eos_token_id = [7, 11]
    return model


@pytest.fixture(scope="module")
def decoder() -> Counting:
    return Counting(ending_llama(), byte_tokenizer())


def ask(decoder: PlainDecoder, folder: Path, prompts: Sequence[Prompt], **changes: object) -> None:
    """Answers of at most 12 tokens, a third of them sampled."""
    wanted = {"max_new_tokens": 12, "sampled_share": 0.3, "batch_size": 6, **changes}
    write_answers(decoder, prompts, folder, **wanted)  # type: ignore[arg-type]


def test_greedy_answers_are_the_plain_decoders(decoder: Counting, tmp_path: Path) -> None:
    ask(decoder, tmp_path, PROMPTS, sampled_share=0.0)
    found = read_answers(tmp_path)
    assert [each.id for each in found] == sorted(prompt.id for prompt in PROMPTS)
    assert {each.finish for each in found} == {"stop", "length"}
    for each in found:
        (alone,) = generate(decoder, [each.prompt], Settings(max_new_tokens=12))
        assert_same_greedy(decoder.model, each.prompt, each.answer, alone.tokens)
        assert each.finish == alone.finish_reason


def test_batches_are_cut_and_what_is_left_goes_on_together(
    decoder: Counting, tmp_path: Path
) -> None:
    ask(decoder, tmp_path, PROMPTS)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    cut = [line for line in lines if line["finish"] == "cut"]
    assert cut
    last = {each.id: each for each in read_answers(tmp_path)}
    for line in cut:
        assert last[line["id"]].answer[: len(line["answer"])] == tuple(line["answer"])
    assert len(last) == len(PROMPTS)


def test_a_share_is_sampled_by_the_seed(decoder: Counting, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ask(decoder, tmp_path / name, PROMPTS, sampled_share=0.5, seed=seed)
    a, b, c = [read_answers(tmp_path / name) for name in "abc"]
    assert a == b
    assert a != c
    assert 4 < sum(each.sampled for each in a) < 19
    every = tmp_path / "every"
    ask(decoder, every, PROMPTS, sampled_share=1.0)
    assert all(each.sampled for each in read_answers(every))


def test_a_killed_run_goes_on_and_loses_one_batch_at_most(tmp_path: Path) -> None:
    whole = Counting(ending_llama(), byte_tokenizer())
    ask(whole, tmp_path / "whole", PROMPTS)
    for dies_in in range(1, whole.num_batches + 1):
        folder = tmp_path / str(dies_in)
        killed = Counting(ending_llama(), byte_tokenizer())
        killed.dies_in = dies_in
        with pytest.raises(KilledError):
            ask(killed, folder, PROMPTS)
        resumed = Counting(ending_llama(), byte_tokenizer())
        ask(resumed, folder, PROMPTS)
        assert resumed.num_batches == whole.num_batches - dies_in + 1
        for name in ("answers.json", "answers.jsonl"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_cut_last_line_is_dropped_and_answered_again(decoder: Counting, tmp_path: Path) -> None:
    ask(decoder, tmp_path, PROMPTS, sampled_share=0.0)
    expected = read_answers(tmp_path)
    path = tmp_path / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    assert len(read_answers(tmp_path)) == len(PROMPTS) - 1
    ask(decoder, tmp_path, PROMPTS, sampled_share=0.0)
    assert read_answers(tmp_path) == expected


def test_more_prompts_are_added_to_what_is_there(decoder: Counting, tmp_path: Path) -> None:
    ask(decoder, tmp_path, PROMPTS[:7], sampled_share=0.0)
    before = read_answers(tmp_path)
    ask(decoder, tmp_path, PROMPTS, sampled_share=0.0)
    after = read_answers(tmp_path)
    assert len(after) == len(PROMPTS)
    assert set(before) <= set(after)


def test_prompts_that_fill_the_context_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ending_llama()
    model.config.max_position_embeddings = 40
    decoder = PlainDecoder(model, byte_tokenizer())
    long = make_prompt([Message("user", "x" * 60)])
    ask(decoder, tmp_path, [PROMPTS[0], long], max_new_tokens=100, sampled_share=0.0)
    (only,) = read_answers(tmp_path)
    assert len(only.prompt) + len(only.answer) <= 40
    with pytest.raises(DataError, match="none of 1 prompts fits the model's context of 40"):
        ask(decoder, tmp_path, [long])
    assert capsys.readouterr().err == "prompts left out, as they fill the context: 1\n"


def test_answers_of_another_run_are_refused(decoder: Counting, tmp_path: Path) -> None:
    ask(decoder, tmp_path, PROMPTS[:2])
    other = PlainDecoder(tiny_llama(seed=1), byte_tokenizer())
    with pytest.raises(WorkError, match="of another run: base differ"):
        ask(other, tmp_path, PROMPTS[:2])
    with pytest.raises(WorkError, match="of another run: max_new_tokens, seed differ"):
        ask(decoder, tmp_path, PROMPTS[:2], max_new_tokens=5, seed=9)


def test_damaged_folders_are_refused(decoder: Counting, tmp_path: Path) -> None:
    ask(decoder, tmp_path, PROMPTS[:9])
    path = tmp_path / "answers.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-9], *lines[2:]]) + "\n")
    with pytest.raises(WorkError, match=r"answers\.jsonl line 2 is damaged"):
        read_answers(tmp_path)
    (tmp_path / "answers.json").write_text("{")
    with pytest.raises(WorkError, match=r"answers\.json is damaged"):
        ask(decoder, tmp_path, PROMPTS[:9])
    (tmp_path / "answers.json").unlink()
    with pytest.raises(WorkError, match=r"has answers but no answers\.json"):
        ask(decoder, tmp_path, PROMPTS[:9])


def test_a_full_disk_is_one_line_and_nothing_is_lost(decoder: Counting, tmp_path: Path) -> None:
    ask(decoder, tmp_path, PROMPTS[:9], sampled_share=0.0)
    before = read_log(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "answers.jsonl").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="no space left on the disk"):
        append_lines(tmp_path / "full" / "answers.jsonl", ["x" * 9999])
    assert read_log(tmp_path) == before


def test_models_that_cannot_be_asked(tmp_path: Path) -> None:
    mute = byte_tokenizer()
    mute.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        ask(PlainDecoder(ending_llama(), mute), tmp_path, PROMPTS)
    endless = ending_llama()
    endless.config.eos_token_id = endless.generation_config.eos_token_id = None
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="names no end token"):
        ask(PlainDecoder(endless, tokenizer), tmp_path, PROMPTS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes", [{"sampled_share": 1.5}, {"temperature": 0.0}, {"max_new_tokens": 0}]
)
def test_bad_settings(decoder: Counting, tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ask(decoder, tmp_path, PROMPTS, **changes)


def test_an_answer_is_a_line(tmp_path: Path) -> None:
    answer = Answer("id", "chat", (1, 2), (3,), sampled=True, finish="stop")
    append_lines(tmp_path / "answers.jsonl", [json.dumps(dataclasses.asdict(answer))])
    line = (tmp_path / "answers.jsonl").read_text()
    assert json.loads(line) == {**dataclasses.asdict(answer), "prompt": [1, 2], "answer": [3]}
    assert read_answers(tmp_path) == [answer]
