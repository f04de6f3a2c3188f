"""Answers that the base itself gives: what a smashed model is trained on.

A folder holds `answers.json`, what the answers depend on, and `answers.jsonl`, one line an answer,
appended batch by batch.  Prompts are answered in batches of like length.  A batch that is nearly
done is cut: the unfinished answers are written down as far as they are (finish "cut"), and go on
later in a batch of their own.  The file alone decides what is done next, so a run that was killed
goes on where it was, having lost one batch at most.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.data.prompts import Prompt
from lightstride.errors import ConfigError, DataError, ModelError, WorkError
from lightstride.files import read_lines
from lightstride.files.read import Token, parse_json
from lightstride.files.sealed import append_sealed, opened, read_sealed, write_sealed
from lightstride.generate import PlainDecoder, Settings
from lightstride.generate.chat_template import chat_tokens
from lightstride.generate.decoder import ALL_AT_ONCE
from lightstride.generate.rows import context_length, ends_of
from lightstride.models.fingerprint import fingerprint
from lightstride.progress import Bar

VERSION = 1
HEADER, LINES = "answers.json", "answers.jsonl"
CUT = "cut"
CUT_FRACTION = 4
"""A batch is cut once less than one in so many of its rows goes on."""


@dataclass(frozen=True)
class Answer:
    """The base's answer to one prompt."""

    id: str
    domain: str
    prompt: tuple[Token, ...]
    answer: tuple[Token, ...]
    """Its tokens, the end token included."""
    sampled: bool
    finish: str
    """stop, or length where it was too long."""


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """Settings of the answers of a folder."""

    max_new_tokens: int
    sampled_share: float
    temperature: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.sampled_share <= 1:
            raise ConfigError(f"sampled_share is {self.sampled_share}; it must be in [0, 1]")
        self.settings(sampled=False)
        if self.sampled_share and not self.temperature > 0:
            raise ConfigError(f"temperature is {self.temperature}; to sample it must be above 0")

    def settings(self, *, sampled: bool) -> Settings:
        """Settings of the decoder."""
        temperature = self.temperature if sampled else 0.0
        return Settings(max_new_tokens=self.max_new_tokens, temperature=temperature, seed=self.seed)

    def is_sampled(self, name: str) -> bool:
        """Whether the answer to this prompt is sampled; the same in every run."""
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        return int.from_bytes(digest[:8], "little") < self.sampled_share * 2**64


def write_answers(
    decoder: PlainDecoder,
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    max_new_tokens: int = 512,
    sampled_share: float = 0.0,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Write the base's answer to every prompt into the folder; what is there is kept.

    Prompts that fill the context are passed over, and their number is reported once; DataError
    where none is left.  Raises WorkError where the folder has answers of another base or of other
    settings.
    """
    answer_settings = AnswerSettings(
        max_new_tokens=max_new_tokens,
        sampled_share=sampled_share,
        temperature=temperature,
        seed=seed,
    )
    model, tokenizer = decoder.model, decoder.tokenizer
    if not ends_of(model, tokenizer):
        raise ModelError("the base names no end token, so it is not known where its answers end")
    started = unanswered(prompts, tokenizer, answer_settings)
    fitting = [each for each in started if has_room(each, model)]
    if not fitting:
        raise DataError(
            f"none of {len(started)} prompts fits the model's context of {context_length(model)}"
        )
    open_folder(folder, model, tokenizer, answer_settings)
    if len(fitting) < len(started):
        count = len(started) - len(fitting)
        tqdm.write(f"prompts left out, as they fill the context: {count}", file=sys.stderr)
    read_lines(folder / LINES, mend=True)
    log = read_log(folder)
    check_tokens(log, model, folder)
    bar = Bar(total=len(fitting), desc="answers", unit="", disable=not progress)
    bar.update(sum(1 for each in fitting if is_done(log, each)))
    with bar:
        for sampled in (False, True):
            chosen = [each for each in fitting if each.sampled == sampled]
            settings = answer_settings.settings(sampled=sampled)
            for batch, may_cut in next_batches(chosen, log, batch_size):
                answers = continue_batch(decoder, batch, settings, may_cut=may_cut)
                append_sealed(folder / LINES, map(asdict, answers))
                merge_into(log, answers)
                bar.update(sum(1 for each in answers if each.finish != CUT))


def read_answers(folder: Path) -> list[Answer]:
    """All finished answers, in the order of their prompts' ids."""
    found = read_log(folder)
    return [found[name] for name in sorted(found) if found[name].finish != CUT]


def unanswered(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, answer_settings: AnswerSettings
) -> list[Answer]:
    """Prompts as answers of no tokens, sorted by length; ModelError without a chat template."""
    if not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template; smash needs a chat model")
    started = []
    for prompt in prompts:
        tokens = chat_tokens(tokenizer, [message.as_dict() for message in prompt.messages])
        sampled = answer_settings.is_sampled(prompt.id)
        started.append(Answer(prompt.id, prompt.domain, tuple(tokens), (), sampled, CUT))
    return sorted(started, key=lambda each: (len(each.prompt), each.id))


def has_room(answer: Answer, model: PreTrainedModel) -> bool:
    """Whether the context has room for a token after the prompt."""
    context = context_length(model)
    return context is None or len(answer.prompt) < context


def is_done(log: Mapping[str, Answer], answer: Answer) -> bool:
    """Whether this prompt has its whole answer."""
    return answer.id in log and log[answer.id].finish != CUT


def next_batches(
    chosen: Sequence[Answer], log: Mapping[str, Answer], batch_size: int
) -> Iterator[tuple[list[Answer], bool]]:
    """Answers to go on with together, and whether the batch may be cut.

    The log is read after each batch.  Cut answers go on as soon as they fill a batch, and at the
    end.
    """
    names = {each.id for each in chosen}
    while True:
        waiting = [each for name, each in log.items() if name in names and each.finish == CUT]
        fresh = [each for each in chosen if each.id not in log]
        if len(waiting) >= batch_size or not fresh:
            batch, waiting = waiting[:batch_size], waiting[batch_size:]
        else:
            batch, fresh = fresh[:batch_size], fresh[batch_size:]
        if not batch:
            return
        yield batch, bool(waiting or fresh)


def continue_batch(
    decoder: PlainDecoder, batch: Sequence[Answer], settings: Settings, *, may_cut: bool
) -> list[Answer]:
    """The answers, each one step further; "cut" where the batch was left before their end."""
    session = decoder.session(ALL_AT_ONCE, with_text=False)
    for key, each in enumerate(batch):
        session.add(
            (*each.prompt, *each.answer),
            replace(settings, max_new_tokens=settings.max_new_tokens - len(each.answer)),
            str(key),
            copy=sum(
                (*other.prompt, *other.answer) == (*each.prompt, *each.answer)
                for other in batch[:key]
            ),
        )
    answers = list(batch)
    enough = len(batch) // CUT_FRACTION if may_cut else 0
    while len(session.keys) > enough:
        for row in session.step():
            before = answers[int(row.key)]
            answer = (*before.answer, *row.tokens)
            answers[int(row.key)] = replace(before, answer=answer, finish=row.finish or CUT)
    return answers


def open_folder(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    answer_settings: AnswerSettings,
) -> None:
    """Write what the answers depend on, or see that it is the same as before."""
    words = json.dumps([tokenizer.get_vocab(), tokenizer.chat_template], sort_keys=True)
    header: dict[str, object] = {
        "version": VERSION,
        "base": fingerprint(model),
        "tokenizer": hashlib.sha256(words.encode()).hexdigest()[:16],
        **asdict(answer_settings),
    }
    path = folder / HEADER
    if not path.exists():
        if (folder / LINES).exists():
            raise WorkError(f"{folder} has answers but no {HEADER}: delete {folder / LINES}")
        write_sealed(path, header)
        return
    try:
        there = read_sealed(path, dict[str, object], WorkError)
    except WorkError as error:
        raise WorkError(f"{path} is damaged: delete it and {folder / LINES}") from error
    if there != header:
        different = sorted(key for key in header if there.get(key) != header[key])
        raise WorkError(
            f"the answers in {folder} are of another run: {', '.join(different)} differ; "
            "name another folder"
        )


def read_log(folder: Path) -> dict[str, Answer]:
    """The last state of every answer, in the order of writing; a cut last line is dropped."""
    path = folder / LINES
    found: dict[str, Answer] = {}
    for number, line in enumerate(read_lines(path), start=1):
        where = f"{path} line {number}"
        try:
            fields = parse_json(line, dict[str, object], where, WorkError)
            merge_into(found, [opened(fields, Answer, where, WorkError)])
        except WorkError as error:
            raise WorkError(f"{where} is damaged: delete that line") from error
    return found


def check_tokens(log: Mapping[str, Answer], model: PreTrainedModel, folder: Path) -> None:
    """WorkError where an answer has tokens that the model does not know."""
    size: int = model.config.vocab_size
    for each in log.values():
        if max((*each.prompt, *each.answer), default=0) >= size:
            raise WorkError(
                f"{folder / LINES} is damaged: answer {each.id} has tokens beyond the "
                f"vocabulary of {size}; delete that line"
            )


def merge_into(log: dict[str, Answer], answers: Sequence[Answer]) -> None:
    """Put answers behind those in the log, in the place of what was known of them."""
    for each in answers:
        log.pop(each.id, None)
        log[each.id] = each
