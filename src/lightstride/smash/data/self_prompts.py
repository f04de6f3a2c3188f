"""Prompts that a chat model writes by itself: the source `self`, for when there is no data.

Its chat template, up to where a user's words begin, is given to the model, which goes on as the
user (Magpie, arXiv 2406.08464).  Empty, unfinished and repeated turns are dropped.
"""

from pathlib import Path

import msgspec
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.data.prompts import Message, Prompt, make_prompt
from lightstride.data.sampled import PLACEHOLDER, Opening, text_openings
from lightstride.errors import DataError, ModelError, WorkError
from lightstride.files import read_lines
from lightstride.files.read import parse_json
from lightstride.files.sealed import append_sealed, opened
from lightstride.generate import PlainDecoder, Settings, generate
from lightstride.models.chat_template import render_chat
from lightstride.models.fingerprint import fingerprint
from lightstride.progress import Bar

SELF_FILE = "self.jsonl"
LONGEST = 256
"""Tokens of a user's turn; a longer one is dropped."""
SHORTEST_PROMPT = 8
"""Characters of a user's turn; a shorter one is dropped."""
MIN_P = 0.02
"""Against nonsense; unlike top p, it needs no sorting of the vocabulary."""
PATIENCE = 8
"""Batches without a new turn after which the model is taken to have no further questions."""
DOMAIN = "chat"


class Batch(msgspec.Struct):
    """One line of the file: the turns of a batch."""

    texts: list[str]


def self_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    *,
    seed: int = 0,
    batch_size: int = 64,
    folder: Path | None = None,
    progress: bool = False,
) -> list[Prompt]:
    """So many different user turns, sampled; the same for the same seed and batch size.

    With a folder, what was written is kept there batch by batch, and a killed run goes on from it.
    Raises DataError where the model does not write so many.
    """
    decoder = PlainDecoder(model, tokenizer)
    opening, end = user_opening(tokenizer), end_of_turn(tokenizer)
    kept = None if folder is None else folder / SELF_FILE
    batches = [] if kept is None else open_file(kept, model, seed, batch_size)
    found = {prompt.id: prompt for texts in batches for prompt in prompts_of(texts)}
    fruitless = 0
    with Bar(total=count, desc="prompts", unit="", disable=not progress) as bar:
        bar.update(len(found))
        while len(found) < count:
            if fruitless == PATIENCE:
                raise DataError(
                    f"the model wrote only {len(found)} different prompts of the {count} wanted; "
                    "ask for fewer, or give it a file of prompts"
                )
            texts = user_turns(decoder, opening, end, batch_size, draw=(seed, len(batches)))
            batches.append(texts)
            if kept is not None:
                append_sealed(kept, [{"texts": texts}])
            new = {prompt.id: prompt for prompt in prompts_of(texts) if prompt.id not in found}
            found |= new
            fruitless = 0 if new else fruitless + 1
            bar.update(len(new))
    return list(found.values())[:count]


def user_turns(
    decoder: PlainDecoder, opening: Opening, end: str, count: int, *, draw: tuple[int, int]
) -> list[str]:
    """Turns that the model ended itself, of at most LONGEST tokens; `draw` is (seed, batch)."""
    seed, batch = draw
    settings = Settings(
        max_new_tokens=LONGEST,
        temperature=1.0,
        min_p=MIN_P,
        seed=seed * 1_000_003 + batch,
        stop=(end,) if end else (),
    )
    answers = generate(decoder, [opening.tokens] * count, settings)
    texts = [answer.text.strip() for answer in answers if answer.finish_reason == "stop"]
    return [text for text in texts if len(text) >= SHORTEST_PROMPT and "\ufffd" not in text]


def prompts_of(texts: list[str]) -> list[Prompt]:
    """User turns as prompts."""
    return [make_prompt([Message("user", text)], DOMAIN) for text in texts]


def user_opening(tokenizer: PreTrainedTokenizerBase) -> Opening:
    """The chat template up to the user's words; ModelError where there is none."""
    for opening in text_openings(tokenizer):
        if opening.is_chat:
            return opening
    raise ModelError("the tokenizer has no chat template that shows where a user's words begin")


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """Text that the template puts behind the user's words, empty if that is nothing visible."""
    message = [{"role": "user", "content": PLACEHOLDER}]
    text = render_chat(tokenizer, message, add_generation_prompt=False)
    return text.partition(PLACEHOLDER)[2].strip()


def open_file(path: Path, model: PreTrainedModel, seed: int, batch_size: int) -> list[list[str]]:
    """The batches of turns written so far by this model with this seed."""
    header = {"base": fingerprint(model), "seed": seed, "batch_size": batch_size}
    lines = read_lines(path, mend=True)
    if not lines:
        append_sealed(path, [header])
        return []
    try:
        first, *rest = [parse_json(line, object, str(path), WorkError) for line in lines]
        there = opened(
            first if isinstance(first, dict) else {}, dict[str, object], str(path), WorkError
        )
        # a batch of a version without hashes is a bare list
        written = [each if isinstance(each, dict) else {"texts": each} for each in rest]
        batches = [opened(each, Batch, str(path), WorkError).texts for each in written]
    except WorkError as error:
        raise WorkError(f"{path} is damaged: delete it") from error
    if there != header:
        raise WorkError(f"{path} is of another base, seed or batch size; name another folder")
    return batches
