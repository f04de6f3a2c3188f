"""Text that a model writes by itself, for when there is no other: the source `self`.

A model's own samples have its training text's distribution as far as it has learned it.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.errors import DataError

BATCH = 16
LENGTH = 512
"""Longest sample, in tokens."""
SHORTEST = 16
"""Shorter samples are left out, in characters."""
MAX_BATCHES_WITHOUT_TEXT = 4


def sample_documents(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_tokens: int, seed: int
) -> list[str]:
    """At least `num_tokens` of text drawn from the model; the same for the same seed."""
    opening = first_token(tokenizer)
    documents: list[str] = []
    found = batch = last_found = 0
    with torch.random.fork_rng():
        while found < num_tokens:
            torch.manual_seed(seed * 1_000_003 + batch)
            texts = [text for text in _batch(model, tokenizer, opening) if len(text) >= SHORTEST]
            documents += texts
            found += sum(len(ids) for ids in _tokens(texts, tokenizer))
            batch += 1
            last_found = batch if texts else last_found
            if batch - last_found >= MAX_BATCHES_WITHOUT_TEXT:
                raise DataError(f"the model writes no text by itself after {opening!r}")
    return documents


def first_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What a text begins with: the start token, or the end token where there is none."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise DataError("self needs a tokenizer with a start or an end token; this one has neither")


def _batch(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, opening: int) -> list[str]:
    tokens_B1 = torch.full((BATCH, 1), opening, device=model.device)
    longest = getattr(model.config, "max_position_embeddings", None) or LENGTH
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]
    output_BL = generate(
        tokens_B1,
        attention_mask=torch.ones_like(tokens_B1),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=min(LENGTH, longest) - 1,
        pad_token_id=opening if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    return tokenizer.batch_decode(output_BL, skip_special_tokens=True)


def _tokens(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return ids
