"""Text that a model writes by itself, for when there is no other: the source `self`.

A model's own samples have its training text's distribution as far as it has learned it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.errors import DataError
from lightstride.models.chat_template import render_chat

BATCH = 16
LENGTH = 512
"""Longest sample, in tokens."""
SHORTEST_TEXT = 16
"""Shorter samples are left out, in characters."""
MAX_BATCHES_WITHOUT_TEXT = 4
PLACEHOLDER = "(a question)"


def sample_documents(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_tokens: int, seed: int
) -> list[str]:
    """At least `num_tokens` of text drawn from the model; the same for the same seed.

    A model with a chat template writes conversations, both sides of them, as often as plain text.
    """
    ways = text_openings(tokenizer)
    documents: list[str] = []
    found = batch = last_found = 0
    with torch.random.fork_rng():
        while found < num_tokens:
            torch.manual_seed(seed * 1_000_003 + batch)
            texts = _batch(model, tokenizer, ways[batch % len(ways)])
            texts = [text for text in texts if len(text) >= SHORTEST_TEXT]
            documents += texts
            found += sum(len(ids) for ids in _tokens(texts, tokenizer))
            batch += 1
            last_found = batch if texts else last_found
            if batch - last_found >= MAX_BATCHES_WITHOUT_TEXT:
                raise DataError("the model writes no text by itself; give it a text instead")
    return documents


@dataclass(frozen=True)
class Opening:
    """How a text begins, and whether it goes on after an end token."""

    tokens: tuple[int, ...]
    is_chat: bool


def text_openings(tokenizer: PreTrainedTokenizerBase) -> list[Opening]:
    """The start token (or the end token where there is none), and the opening of a conversation."""
    marks = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    start = next((mark for mark in marks if isinstance(mark, int)), None)
    if start is None:
        raise DataError("self needs a tokenizer with a start or an end token; this one has neither")
    found = [Opening((start,), is_chat=False)]
    if tokenizer.chat_template:
        message = [{"role": "user", "content": PLACEHOLDER}]
        text = render_chat(tokenizer, message, add_generation_prompt=False)
        before, _, after = text.partition(PLACEHOLDER)
        if after:
            tokens = tokenizer.encode(before, add_special_tokens=False)
            found.append(Opening(tuple(tokens), is_chat=True))
    return found


def _batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, opening: Opening
) -> list[str]:
    tokens_BL = torch.tensor([opening.tokens] * BATCH, device=model.device)
    longest = getattr(model.config, "max_position_embeddings", None) or LENGTH
    ends = {"eos_token_id": None} if opening.is_chat else {}
    padding = tokenizer.pad_token_id
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]
    output_BL = generate(
        tokens_BL,
        attention_mask=torch.ones_like(tokens_BL),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max(1, min(LENGTH, longest) - tokens_BL.shape[1]),
        pad_token_id=opening.tokens[0] if padding is None else padding,
        **ends,
    )
    texts = tokenizer.batch_decode(output_BL, skip_special_tokens=not opening.is_chat)
    return [text.removeprefix(_added_start(tokenizer)) for text in texts]


def _added_start(tokenizer: PreTrainedTokenizerBase) -> str:
    """The start token's text, where the tokenizer puts one before every text by itself."""
    start = tokenizer.bos_token_id
    adds = isinstance(start, int) and tokenizer.encode("a")[:1] == [start]
    return str(tokenizer.bos_token) if adds else ""


def _tokens(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return ids
