"""Documents to windows of tokens: for calibration, for the search, and held out.

`packed_windows` mixes documents for statistics; `strided_windows` keeps a text as it stands for
perplexity.  Windows remember which documents they came from, so that no document is used in two
roles.

Shapes: N windows, L tokens in each.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightstride.data.documents import document_id, read_documents
from lightstride.errors import DataError

__all__ = ["Windows", "check_disjoint", "packed_windows", "read_documents", "strided_windows"]

CHARACTERS_PER_TOKEN = 8
"""More than any usual text has, to know how much of an endless source to read."""
BATCH = 64
"""Documents that are tokenized at once."""
MOST_CHARACTERS_PER_TOKEN = 64
"""Of a long document no more is tokenized than could be used."""
LARGEST_SHARE = 8
"""One document fills at most 1/8 of what is packed, unless there is too little text."""


@dataclass(frozen=True)
class Windows:
    """Token windows with their origin."""

    tokens_NL: Tensor
    """int64."""
    documents: frozenset[str]
    """Ids of all documents that gave a token."""
    source: str
    context_N: Tensor
    """int64: how many leading tokens of each window are context only, and not scored."""

    @property
    def num_tokens(self) -> int:
        """Tokens in all windows."""
        return self.tokens_NL.numel()

    @property
    def sha256(self) -> str:
        """Hash of the tokens, as `result.json` records it."""
        return hashlib.sha256(self.tokens_NL.numpy().tobytes()).hexdigest()


def windows_in(num_tokens: int, window: int) -> int:
    """How many windows so many tokens fill, one at least."""
    return max(1, num_tokens // window)


def packed_windows(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_tokens: int,
    window: int,
    seed: int = 0,
    skip: frozenset[str] = frozenset(),
    documents: Sequence[str] | None = None,
    fewer: bool = False,
) -> Windows:
    """Windows of mixed documents, at most `num_tokens` in all; the same for the same seed.

    A source with less text is refused, or with `fewer` one that has not even a window's.
    Documents in `skip` are left out.  Each starts and ends as the tokenizer wants, or with its
    end token where the tokenizer adds nothing.  `documents` stand in for the source's own.
    """
    num_windows = windows_in(num_tokens, window)
    needed = num_windows * window
    if documents is None:
        enough = CHARACTERS_PER_TOKEN * needed
        documents = read_documents(source, skip=skip, enough_characters=enough)
    named = {name: text for text in documents if (name := document_id(text)) not in skip}
    names = list(named)
    random.Random(seed).shuffle(names)
    shuffled = {name: named[name] for name in names}
    used: dict[str, Sequence[int]] = {}
    for longest in (max(window, needed // LARGEST_SHARE), needed):
        used = _take(shuffled, tokenizer, needed, longest)
        tokens = [token for part in used.values() for token in part]
        if len(tokens) >= needed:
            break
    else:
        least = window if fewer else needed
        if len(tokens) < least:
            left = " left" if skip else ""
            raise DataError(f"{source} has {len(tokens):,} tokens{left}; {least:,} are needed")
        num_windows = len(tokens) // window
    tokens_NL = torch.tensor(tokens[: num_windows * window]).view(num_windows, window)
    return Windows(tokens_NL, frozenset(used), source, torch.zeros(num_windows, dtype=torch.int64))


def strided_windows(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    stride: int | None = None,
    every: int = 1,
    num_tokens: int | None = None,
    skip: frozenset[str] = frozenset(),
) -> Windows:
    """Windows over a text as it stands, tokenized whole and without special tokens.

    A window starts every `stride` tokens (default: the window) and scores what the one before
    did not.  Of these windows each `every`-th is kept, from the first, and at most as many as
    hold `num_tokens`.  The end that fills no window is left out.
    """
    stride = window if stride is None else stride
    enough = None if num_tokens is None else CHARACTERS_PER_TOKEN * num_tokens * every
    documents = read_documents(source, skip=skip, enough_characters=enough)
    parts = [text if text.endswith("\n") else f"{text}\n\n" for text in documents[:-1]]
    text = "".join([*parts, *documents[-1:]])
    tokens = torch.tensor(_tokenize([text], tokenizer)[0], dtype=torch.int64)
    if len(tokens) < window:
        left = " left" if skip else ""
        raise DataError(f"{source} has {len(tokens):,} tokens{left}; {window:,} are needed")
    starts = range(0, len(tokens) - window + 1, stride)[::every]
    if num_tokens is not None:
        starts = starts[: max(1, num_tokens // window)]
    tokens_NL = torch.stack([tokens[start : start + window] for start in starts])
    context_N = torch.tensor([0 if start == 0 else window - stride for start in starts])
    return Windows(tokens_NL, frozenset(map(document_id, documents)), source, context_N)


def check_disjoint(**windows: Windows) -> None:
    """Raise DataError where two roles share a document; the names are the roles."""
    for (one, first), (other, second) in combinations(windows.items(), 2):
        shared = first.documents & second.documents
        if shared:
            raise DataError(
                f"{one} ({first.source}) and {other} ({second.source}) share {len(shared)} "
                f"documents; give each its own text"
            )


def _take(
    documents: Mapping[str, str], tokenizer: PreTrainedTokenizerBase, needed: int, longest: int
) -> dict[str, Sequence[int]]:
    """Tokens of the first documents until there are enough, at most `longest` of each."""
    before, after = _frame(tokenizer)
    taken: dict[str, Sequence[int]] = {}
    total = 0
    names = list(documents)
    for start in range(0, len(names), BATCH):
        batch = names[start : start + BATCH]
        cut = MOST_CHARACTERS_PER_TOKEN * longest
        encoded = _tokenize([documents[name][:cut] for name in batch], tokenizer)
        for name, tokens in zip(batch, encoded, strict=True):
            part = [*before, *tokens, *after][: min(longest, needed - total)]
            taken[name] = part
            total += len(part)
            if total == needed:
                return taken
    return taken


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Tokens before and after each document."""
    body = tokenizer.encode("a", add_special_tokens=False)
    framed = tokenizer.encode("a", add_special_tokens=True)
    for start in range(len(framed) - len(body) + 1):
        if framed[start : start + len(body)] == body and len(framed) > len(body):
            return framed[:start], framed[start + len(body) :]
    end = tokenizer.eos_token_id
    return [], [end] if isinstance(end, int) else []


def _tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids
