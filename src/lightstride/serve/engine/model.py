"""A served model: its tokenizer and template in a thread of their own; its engine's is shared.

A fast tokenizer is safe to share, but a template and a long text take milliseconds that the event
loop does not have.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import TypeVar

from llguidance import LLTokenizer
from transformers import PreTrainedTokenizerBase

from lightstride.config.decoding import Settings
from lightstride.errors import LightstrideError, ModelError
from lightstride.generate.chat_template import render_chat, token_ids
from lightstride.serve.engine.choices import Choices, choices_of
from lightstride.serve.engine.engine import Engine
from lightstride.serve.engine.grammar import Matcher, compile_schema, start_of, token_trie
from lightstride.serve.engine.sessions import OpenSession
from lightstride.serve.engine.stepper import Stepper
from lightstride.serve.faults import bad
from lightstride.serve.limits import Limits
from lightstride.serve.seam import Ask, Facts, Load, Messages, Ticket, Tools

T = TypeVar("T")
KEPT_GRAMMARS = 32
"""Grammars whose starts are kept, those that were asked for last."""


class ServedModel:
    """What the API asks of a model, given a tokenizer and a way to open sessions."""

    def __init__(
        self,
        facts: Facts,
        tokenizer: PreTrainedTokenizerBase,
        ends: Sequence[int],
        open_session: OpenSession,
        limits: Limits,
        stepper: Stepper,
        shared: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self.facts = facts
        self.tokenizer = tokenizer
        self.ends = tuple(ends)
        self.limits = limits
        self.shared = shared
        """Bytes and tokens of the earlier answers that are looked up."""
        self.words = ThreadPoolExecutor(1, thread_name_prefix="words")
        self.grammars = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self.start = lru_cache(KEPT_GRAMMARS)(lambda grammar: start_of(grammar, self.trie))
        self.engine = Engine(
            open_session, self.prepare, rows=limits.rows, queue=limits.queue, stepper=stepper
        )

    @property
    def load(self) -> Load:
        """How busy the engine is, and what is held."""
        shared_bytes, shared_tokens = self.shared()
        return replace(self.engine.load, shared_bytes=shared_bytes, shared_tokens=shared_tokens)

    def close(self) -> None:
        """End the engine and the model's own threads."""
        self.engine.stop()
        self.words.shutdown(wait=False, cancel_futures=True)
        self.grammars.shutdown(wait=False, cancel_futures=True)

    async def aside(self, call: Callable[[], T]) -> T:
        """The result of a call in the thread for words."""
        return await asyncio.get_running_loop().run_in_executor(self.words, call)

    async def chat(self, messages: Messages, tools: Tools | None) -> tuple[int, ...]:
        """Tokens of a conversation up to the answer; ApiError where the template cannot say it."""
        if not self.facts.has_chat:
            raise bad(f"{self.facts.name} has no chat template; use /v1/completions", "messages")
        return await self.aside(lambda: self.template(messages, tools))

    def template(self, messages: Messages, tools: Tools | None) -> tuple[int, ...]:
        """What `chat` gives, computed here."""
        text = self.render(messages, tools)
        if tools and text == self.render(messages, None):
            raise bad(f"the chat template of {self.facts.name} has no place for tools", "tools")
        return self.ids(text, special=False)

    def render(self, messages: Messages, tools: Tools | None) -> str:
        """The text of a conversation; ApiError where the template refuses it."""
        try:
            return render_chat(self.tokenizer, messages, tools=tools)
        except ModelError as error:
            raise bad(f"the chat template cannot say this: {error}", "messages") from None

    async def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Tokens of a text, with or without those that are put around it."""
        return await self.aside(lambda: self.ids(text, special=special))

    def ids(self, text: str, *, special: bool) -> tuple[int, ...]:
        """What `tokenize` gives, computed here; ApiError for what is no Unicode text."""
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise bad("half a surrogate pair is no text")
        try:
            return tuple(token_ids(self.tokenizer, text, special=special))
        except ModelError as error:
            raise bad(str(error)) from None

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones included."""
        known = [token for token in tokens if token < len(self.tokenizer)]
        return await self.aside(lambda: self.decode(known))

    def decode(self, tokens: Sequence[int]) -> str:
        """What `detokenize` gives, computed here."""
        text = self.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    @cached_property
    def trie(self) -> LLTokenizer:
        """All tokens as grammars need them; takes about a second, once."""
        return token_trie(self.tokenizer, self.facts.vocab_size, self.ends)

    def warm_up(self) -> None:
        """Begin with what the first grammar and the first logprobs would wait for."""
        self.grammars.submit(lambda: self.pieces)

    async def know_pieces(self) -> None:
        """Make `piece` quick."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.grammars, lambda: self.pieces)

    def piece(self, token: int) -> bytes:
        """The bytes of one token; those of a special one are its name's."""
        return self.pieces[token] if token < len(self.pieces) else b""

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of all tokens."""
        try:
            pieces = [bytes(self.trie.decode_bytes([t])) for t in range(len(self.tokenizer))]
        except ModelError:
            pieces = [self.decode([token]).encode() for token in range(len(self.tokenizer))]
        for number, token in self.tokenizer.added_tokens_decoder.items():
            pieces[number] = token.content.encode()
        return pieces

    async def compile(self, schema: str) -> str:
        """The grammar of a JSON schema; ApiError where it has none that can be used."""
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self.grammars, lambda: self.compile_here(schema))
        try:
            async with asyncio.timeout(self.limits.schema_seconds):
                return await work
        except TimeoutError:
            raise bad("the schema takes too long to compile", "response_format") from None
        except (ValueError, LightstrideError) as error:
            raise bad(
                f"the schema cannot be used: {error}", "response_format", "invalid_json_schema"
            ) from None

    def compile_here(self, schema: str) -> str:
        """What `compile` gives, computed here; the grammar's start is kept for the rows."""
        grammar = compile_schema(schema, self.trie)
        self.start(grammar)
        return grammar

    def submit(self, asks: Sequence[Ask]) -> list[Ticket]:
        """Queue answers, all or none; ApiError 429 where the queue is full."""
        return list(self.engine.submit(asks))

    def prepare(self, ask: Ask) -> tuple[float, Settings, Choices | None]:
        """A row's budget, settings and say in what is chosen; in the engine's thread."""
        settings = Settings(
            max_new_tokens=ask.max_tokens,
            temperature=ask.temperature,
            top_k=ask.top_k,
            top_p=ask.top_p,
            min_p=ask.min_p,
            repetition_penalty=ask.repetition_penalty,
            seed=ask.seed,
            stop=ask.stop,
            ignore_end_tokens=ask.ignore_end_tokens,
            mode=ask.mode,
            exact=ask.exact,
            confidence=ask.confidence,
            logprobs=ask.top_logprobs,
        )
        matcher = None if ask.grammar is None else Matcher(self.start(ask.grammar), self.trie)
        return ask.kv, settings, choices_of(ask, matcher)
