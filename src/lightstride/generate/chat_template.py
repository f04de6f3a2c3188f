"""Prompts as tokens: a chat's, by the model's own template, or a text's."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase


def chat_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]
) -> list[int]:
    """Tokens of a conversation, up to where the model's answer begins."""
    text = tokenizer.apply_chat_template(
        [dict(message) for message in messages], add_generation_prompt=True, tokenize=False
    )
    assert isinstance(text, str)
    return token_ids(tokenizer, text, special=False)


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    """Tokens of a text, with or without those that the tokenizer puts around it."""
    ids = tokenizer.encode(text, add_special_tokens=special, verbose=False)
    assert isinstance(ids, list)
    return ids
