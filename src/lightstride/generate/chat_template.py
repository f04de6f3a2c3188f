"""Prompts as tokens: a chat's, by the model's own template, or a text's."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from lightstride.errors import ModelError, is_panic
from lightstride.models.chat_template import render_chat

__all__ = ["chat_tokens", "render_chat", "token_ids"]


def chat_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]
) -> list[int]:
    """Tokens of a conversation, up to where the model's answer begins."""
    return token_ids(tokenizer, render_chat(tokenizer, messages), special=False)


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    """Tokens of a text, with or without those that the tokenizer puts around it.

    Raises ModelError where the tokenizer gives up, as one does whose pattern backtracks for ever.
    """
    try:
        ids = tokenizer.encode(text, add_special_tokens=special, verbose=False)
    except BaseException as error:
        if not is_panic(error):
            raise
        name = tokenizer.name_or_path
        raise ModelError(f"the tokenizer of {name} cannot read this text: {error}") from error
    assert isinstance(ids, list)
    return ids
