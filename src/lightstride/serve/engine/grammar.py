"""JSON schemas as grammars over tokens, by llguidance.

A schema is compiled once, within bounds, so that none costs more than a few seconds and a few
megabytes; every row gets a copy.  A matcher follows the tokens of one answer and goes back where
drafts were not accepted.
"""

from collections.abc import Sequence

import llguidance.hf
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lightstride.errors import ModelError

LIMITS = LLParserLimits(
    max_items_in_row=1000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
SPACES = r"[ \n]{0,2}"
"""White space between the parts: free enough for a model's habits, never endless."""


def token_trie(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, ends: Sequence[int]
) -> LLTokenizer:
    """All tokens as llguidance knows them; ModelError for a tokenizer it cannot read."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError("answers of a slow tokenizer cannot be bound to a format")
    try:
        return llguidance.hf.from_tokenizer(
            tokenizer, n_vocab=max(vocab_size, len(tokenizer)), eos_token=list(ends)
        )
    except ValueError as error:
        raise ModelError(
            f"answers of this tokenizer cannot be bound to a format: {error}"
        ) from error


def compile_schema(schema: str, trie: LLTokenizer) -> str:
    """The grammar of a JSON schema; ValueError with the reason where it has none."""
    grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": SPACES})
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, trie, limits=LIMITS)
    if is_error:
        raise ValueError(first_line(messages[0]))
    return str(grammar)


def first_line(text: str) -> str:
    """The first line of an error, not longer than a user reads."""
    return text.strip().splitlines()[0][:300] if text.strip() else "no reason was given"


def start_of(grammar: str, trie: LLTokenizer) -> LLMatcher:
    """A grammar before the first token, to be copied for every answer."""
    return LLMatcher(trie, grammar, log_level=0, limits=LIMITS)


class Matcher:
    """Where in a grammar an answer is."""

    def __init__(self, start: LLMatcher, trie: LLTokenizer) -> None:
        self.matcher = start.deep_copy()
        self.vocab_size = trie.vocab_size
        self.consumed: list[int] = []
        self.problem: str | None = None

    def allowed(self, said: Sequence[int]) -> np.ndarray | None:
        """Which tokens may follow, shape (V,); None, with a problem noted, where it is lost."""
        if not self.go_to(said):
            self.problem = self.problem or "the answer left its format"
            return None
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        if self.matcher.is_error():
            self.problem = f"the schema is too complex: {first_line(self.matcher.get_error())}"
            return None
        return np.unpackbits(bits, bitorder="little")[: self.vocab_size].astype(bool)

    def go_to(self, said: Sequence[int]) -> bool:
        """Follow what was said, back and forth; whether that is possible."""
        same = 0
        for old, new in zip(self.consumed, said, strict=False):
            if old != new:
                break
            same += 1
        back = len(self.consumed) - same
        if back and not self.matcher.rollback(back):
            return False
        del self.consumed[same:]
        for token in said[same:]:
            if not self.matcher.consume_token(token):
                self.problem = first_line(self.matcher.get_error())
                return False
            self.consumed.append(token)
        return True
