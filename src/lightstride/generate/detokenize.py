"""Text as it grows: bytes that are not yet a character, and words that may be a stop string, wait.

A tokenizer decodes a token differently after another than alone (spaces, characters of several
tokens).  So a short tail of tokens is decoded twice, with and without the new ones, and the
difference is the new text; an unfinished character decodes to U+FFFD and is held back.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"


class Detokenizer:
    """Turns a stream of tokens into a stream of text; special tokens are left out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.start = 0
        self.shown = 0

    def feed(self, token: int) -> str:
        """The text that this token completes, often empty."""
        self.tokens.append(token)
        text = self.pending()
        if not text or text.endswith(UNFINISHED):
            return ""
        self.start, self.shown = self.shown, len(self.tokens)
        return text

    def pending(self) -> str:
        """Text of the tokens not yet shown, unfinished characters included."""
        known = self.decode(self.tokens[self.start : self.shown])
        return self.decode(self.tokens[self.start :])[len(known) :]

    def decode(self, tokens: Sequence[int]) -> str:
        text = self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text


class TextStream:
    """Text that may be shown: everything before the first stop string, and no part of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self.detokenizer = Detokenizer(tokenizer)
        self.stop = tuple(stop)
        self.held = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """Text to show now; once a stop string is complete, `stopped` is set."""
        return self.release(self.detokenizer.feed(token))

    def flush(self) -> str:
        """Text still held back when the answer ends."""
        text = "" if self.stopped else self.release(self.detokenizer.pending()) + self.held
        self.held = ""
        return text

    def release(self, text: str) -> str:
        self.held += text
        found = [at for at in (self.held.find(word) for word in self.stop) if at >= 0]
        if found:
            self.stopped = True
            shown, self.held = self.held[: min(found)], ""
            return shown
        waiting = max((overlap(self.held, word) for word in self.stop), default=0)
        cut = len(self.held) - waiting
        shown, self.held = self.held[:cut], self.held[cut:]
        return shown


def overlap(text: str, word: str) -> int:
    """Length of the longest end of `text` that is a beginning of `word`, shorter than it."""
    return next(
        (n for n in range(min(len(text), len(word) - 1), 0, -1) if text.endswith(word[:n])), 0
    )
