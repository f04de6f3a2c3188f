"""One row of a session: its prompt, its answer as far as it goes, and the cut that ends it.

Tokens are accepted one at a time, whatever number of them a forward brought, so an end token, a
stop string or the length limit cuts at exactly the same token in every mode.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.config.decoding import Settings
from lightstride.errors import ConfigError
from lightstride.generate.detokenize import TextStream
from lightstride.generate.session import FinishReason, Hooks
from lightstride.models.end_tokens import end_tokens

NO_HOOKS = Hooks()


@dataclass(eq=False)
class Row:
    """One prompt and the answer to it, as far as it goes."""

    key: str
    prompt: tuple[int, ...]
    settings: Settings
    random_key: bytes
    """Identity of the row for its random draws."""
    limit: int
    """Most tokens of the answer."""
    ends: frozenset[int] = frozenset()
    """Tokens that end the answer."""
    hooks: Hooks = NO_HOOKS
    stream: TextStream | None = None
    """Turns tokens into text; None: nobody wants the text."""

    def __post_init__(self) -> None:
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.steps = 0
        self.drafted = 0
        self.accepted = 0
        self.kv_entries = 0
        self.near_ties = 0
        self.number = 0
        """Number of rows that joined before it."""
        self.num_read = 0
        """Prompt tokens read."""
        self.gave_way = False
        """Whether its last turn to be read was given up."""
        self.num_cached = 0
        """Those of them whose entries were there already."""
        self.num_single = 0
        """Answer tokens, from the first on, that have an entry each."""
        self.is_merged = False
        """Whether an entry stands for several tokens of the answer."""
        self.pending: list[int] = []
        """Tokens that are certain and not in the cache yet."""
        self.taps_TD: Tensor | None = None
        """The base's features at the row's last entry, where its mode drafts from them."""

    @property
    def left_to_read(self) -> int:
        """Prompt tokens not yet read."""
        return len(self.prompt) - self.num_read

    @property
    def reads_history(self) -> bool:
        """Whether logits depend on earlier tokens, so that every drafted token must be known."""
        return self.hooks.processor is not None or self.settings.repetition_penalty != 1

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token by the model's own logits is taken."""
        return self.settings.is_greedy and not self.reads_history

    def extend(self, tokens: Sequence[int]) -> tuple[tuple[int, ...], str]:
        """Accept tokens up to the row's cut: those that were kept, and the text to show now."""
        before, text = len(self.tokens), ""
        for token in tokens:
            if self.finish_reason is not None:
                break
            text += self.accept(token)
        return tuple(self.tokens[before:]), text

    def accept(self, token: int) -> str:
        """Add one token; the text that may be shown now."""
        self.tokens.append(token)
        text = self.stream.feed(token) if self.stream is not None else ""
        stopper = self.hooks.stopper
        if token in self.ends or (self.stream is not None and self.stream.stopped):
            return text + self.finish("stop")
        if len(self.tokens) >= self.limit:
            return text + self.finish("length")
        if stopper is not None and stopper(self.tokens):
            return text + self.finish("stop")
        return text

    def finish(self, reason: FinishReason) -> str:
        """End the answer; the text that was held back."""
        assert self.finish_reason is None
        self.finish_reason = reason
        return self.stream.flush() if self.stream is not None else ""


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """Every end token that the model config, the generation config or the tokenizer names."""
    return frozenset(end_tokens(model.config, model.generation_config, tokenizer))


def context_length(model: PreTrainedModel) -> int | None:
    """Most positions the model knows, or None if its config does not name it."""
    length = getattr(model.config, "max_position_embeddings", None)
    return length if isinstance(length, int) else None


def check_prompt(prompt: Sequence[int], context: int | None, vocab_size: int) -> None:
    """Refuse a prompt that is empty, longer than the context, or not of this vocabulary."""
    if len(prompt) == 0:
        raise ConfigError("the prompt is empty; it must have at least one token")
    if context is not None and len(prompt) >= context:
        raise ConfigError(
            f"the prompt has {len(prompt)} tokens; the model's context is {context}, "
            f"so a prompt may have at most {context - 1}"
        )
    if not 0 <= min(prompt) <= max(prompt) < vocab_size:
        raise ConfigError(
            f"the prompt has token {min(prompt) if min(prompt) < 0 else max(prompt)}; "
            f"the model's vocabulary is 0 to {vocab_size - 1}"
        )
