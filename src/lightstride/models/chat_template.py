"""A model's own chat template, rendered within limits of time, size and what it may call.

Templates are programs in Jinja that come with a checkpoint.  transformers runs them in a sandbox,
which keeps them from the system but lets them loop for hours or build strings of gigabytes.  Here
the same language runs in a sandbox with limits, and ends in one clear line when it goes too far.
"""

import functools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from jinja2 import Template
from transformers import PreTrainedTokenizerBase

from lightstride.errors import ModelError
from lightstride.models.template_sandbox import MAX_CHARACTERS, LimitedEnvironment, LimitError

MAX_SECONDS = 5.0
LINES_BETWEEN_LOOKS = 256


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, object]],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, object]] | None = None,
) -> str:
    """The text of a conversation, by the tokenizer's template.

    Raises ModelError where the template is broken, refuses the messages, or goes too far.
    """
    name = tokenizer.name_or_path
    given = None if tools is None else [dict(tool) for tool in tools]
    try:
        with deadline(MAX_SECONDS):
            source = tokenizer.get_chat_template(None, given)
            pieces, total = [], 0
            for piece in compiled(source).generate(
                **tokenizer.special_tokens_map,
                messages=[dict(message) for message in messages],
                tools=given,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            ):
                pieces.append(piece)
                total += len(piece)
                if total > MAX_CHARACTERS:
                    raise LimitError(f"its text is longer than {MAX_CHARACTERS:,} characters")
            text = "".join(pieces)
            text.encode("utf-8")  # half of a pair of surrogates is no text
    except Exception as error:  # a template can raise whatever Python can
        told = " ".join((str(error) or type(error).__name__).split())[:200]
        raise ModelError(f"the chat template of {name} cannot be used: {told}") from error
    return text


@functools.lru_cache(maxsize=8)
def compiled(source: str) -> Template:
    """A template ready to run."""
    return LimitedEnvironment().from_string(source)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise LimitError inside the block once this thread has computed for so long."""
    end, lines = time.thread_time() + seconds, 0

    def look(_frame: FrameType, _event: str, _argument: object) -> Any:  # noqa: ANN401, sys.settrace's own type
        nonlocal lines
        lines += 1
        if lines % LINES_BETWEEN_LOOKS == 0 and time.thread_time() > end:
            raise LimitError(f"it runs for more than {seconds:g} s")
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)
