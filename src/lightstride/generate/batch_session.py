"""The session of every decoder: admission, reading prompts in chunks, one forward a step.

Rows stand in the batch in this order, and in the session's list in the same:

    answering ... | reading ... | and those that wait for room are in no batch yet

Shapes: B rows, K columns of a row, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.config.decoding import Settings
from lightstride.errors import ConfigError
from lightstride.generate.batch.alike import check_alike
from lightstride.generate.batch.cache import Storage
from lightstride.generate.batch.forward import CachedBatch, Forward
from lightstride.generate.batch.give_way import GivenUpError, giving_way
from lightstride.generate.batch.memory_batch import MemoryBatch
from lightstride.generate.detokenize import TextStream
from lightstride.generate.emit import OnEnd, emit
from lightstride.generate.modes import ColumnReader, Columns, DecodingMode, Outcome
from lightstride.generate.prefixes import PrefixPool
from lightstride.generate.rows import NO_HOOKS, Row, check_prompt, context_length
from lightstride.generate.sampling import row_key
from lightstride.generate.session import Hooks, Interrupt, Limits, RowStep
from lightstride.generate.turns import Turns
from lightstride.memory.cache import Memory


class BatchSession:
    """Rows of one model in any of its modes; see `Session`."""

    def __init__(
        self,
        model: PreTrainedModel,
        modes: Mapping[str, DecodingMode],
        resolve: Callable[[Settings], Settings],
        *,
        reader: ColumnReader,
        tokenizer: PreTrainedTokenizerBase | None,
        ends: frozenset[int],
        limits: Limits,
        storage: Storage,
        memory: Memory | None = None,
        on_end: OnEnd | None = None,
    ) -> None:
        self.model = model
        self.modes = modes
        self.on_end = on_end
        """Hears of every answer when it has ended."""
        self.resolve = resolve
        """Fills in what the settings leave to the model; ConfigError for a mode it has not."""
        self.reader = reader
        self.tokenizer = tokenizer
        self.ends = ends
        self.limits = limits
        self.left = 0
        """Entries of the limit that others were promised."""
        self.batch = CachedBatch(model, storage) if memory is None else MemoryBatch(model, memory)
        self.rows: list[Row] = []
        self.num_answering = 0
        self.num_joined = 0
        self.turns = Turns(limits)
        self.prefixes = PrefixPool()
        self.waiting: deque[Row] = deque()
        self.cancelled: set[str] = set()

    def add(
        self,
        prompt: Sequence[int],
        settings: Settings,
        key: str,
        *,
        hooks: Hooks | None = None,
        copy: int = 0,
    ) -> None:
        """Take a row in; it joins at the first step with room for it."""
        settings = self.resolve(settings)
        context = context_length(self.model)
        check_prompt(prompt, context, self.model.config.vocab_size)
        if key in self.keys:
            raise ConfigError(f"the key {key!r} is taken by a row that has not ended")
        if settings.stop and self.tokenizer is None:
            raise ConfigError("stop strings were given, but there is no tokenizer to read them")
        if settings.exact:
            check_alike(self.model, is_full=self.batch.flattens)
        limit = settings.max_new_tokens
        row = Row(
            key,
            tuple(prompt),
            settings,
            row_key(settings.seed, prompt, copy),
            limit if context is None else min(limit, context - len(prompt)),
            frozenset() if settings.ignore_end_tokens else self.ends,
            hooks or NO_HOOKS,
            None if self.tokenizer is None else TextStream(self.tokenizer, settings.stop),
        )
        most = self.limits.entries
        if most is not None and self.need(row) > most:
            raise ConfigError(
                f"the prompt has {len(prompt)} tokens and the answer up to {row.limit}: that is "
                f"{self.need(row)} KV entries, and there is room for {most}"
            )
        self.waiting.append(row)

    def need(self, row: Row) -> int:
        """KV entries that a row is promised."""
        return len(row.prompt) + row.limit + self.mode(row).scratch(row.settings)

    def mode(self, row: Row) -> DecodingMode:
        """The mode of a row."""
        assert row.settings.mode is not None
        return self.modes[row.settings.mode]

    def cancel(self, key: str) -> None:
        """Drop a row before the next step."""
        self.waiting = deque(row for row in self.waiting if row.key != key)
        self.cancelled |= {row.key for row in self.inside if row.key == key}

    @property
    def inside(self) -> list[Row]:
        """Rows of the batch that have not ended."""
        return [
            row for row in self.rows if row.finish_reason is None and row.key not in self.cancelled
        ]

    @property
    def keys(self) -> Sequence[str]:
        """Rows that have not ended: waiting, reading or answering."""
        return [row.key for row in [*self.inside, *self.waiting]]

    @property
    def free_entries(self) -> int | None:
        """KV entries, of the limit, that no row has been promised yet; None without a limit."""
        return None if self.room is None else self.room - self.promised_entries

    @property
    def promised_entries(self) -> int:
        """KV entries that rows have been promised."""
        return self.promised([*self.inside, *self.waiting])

    def leave(self, entries: int) -> None:
        """Leave so many entries of the limit to others from now on."""
        self.left = entries
        if self.room is not None:
            self.bound_prefixes(self.room)

    @property
    def room(self) -> int | None:
        """Most KV entries of all rows together; None: no bound."""
        return None if self.limits.entries is None else self.limits.entries - self.left

    def promised(self, rows: Sequence[Row]) -> int:
        """KV entries of a rectangle that holds these rows to their ends."""
        return len(rows) * max(map(self.need, rows), default=0)

    def fits(self, num_prompt: int, settings: Settings) -> bool:
        """Whether a row of so many prompt tokens would join at the next step."""
        if self.room is None:
            return True
        settings = self.resolve(settings)
        assert settings.mode is not None
        scratch = self.modes[settings.mode].scratch(settings)
        context = context_length(self.model)
        whole = num_prompt + settings.max_new_tokens
        row_needs = (whole if context is None else min(whole, context)) + scratch
        others = [self.need(row) for row in [*self.inside, *self.waiting]]
        return max([*others, row_needs]) * (len(others) + 1) <= self.room

    @property
    def entry_bytes(self) -> int:
        """Bytes of one KV entry over all layers; 0 before the first step."""
        return self.batch.entry_bytes

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the KV cache as it is, room to grow included."""
        return self.batch.allocated_bytes + self.prefixes.allocated_bytes

    def step(self, interrupt: Interrupt | None = None) -> Sequence[RowStep]:
        """One forward of the base for all rows that answer, and one for the prompts being read."""
        with torch.inference_mode():
            self.drop()
            rows = [*self.rows, *self.waiting]
            self.batch.rounds_alike = any(row.settings.exact for row in rows)
            self.join()
            answering = self.num_answering
            return [*self.answer(answering), *self.read(answering, interrupt)]

    def drop(self) -> None:
        """Take rows that ended or were cancelled out of the batch."""
        gone = [row.finish_reason is not None or row.key in self.cancelled for row in self.rows]
        for index in reversed([index for index, is_gone in enumerate(gone) if is_gone]):
            self.keep_prefix(index)
            if index < self.num_answering:
                self.num_answering -= 1
                self.move(self.num_answering, index)
                index = self.num_answering
            self.move(len(self.rows) - 1, index)
            self.rows.pop()
            self.batch.drop_last()
        self.cancelled.clear()

    def move(self, source: int, target: int) -> None:
        """Write a row over another."""
        self.rows[target] = self.rows[source]
        self.batch.move_row(source, target)

    def join(self) -> None:
        """Let rows that wait into the batch, as far as there is room for them."""
        most = self.room
        while self.waiting:
            if most is not None and self.promised([*self.rows, self.waiting[0]]) > most:
                break
            self.rows.append(self.waiting.popleft())
            self.rows[-1].number = self.num_joined
            self.num_joined += 1
            self.batch.add_row()
        longest = max(map(self.need, self.rows), default=1)
        if most is not None:
            most = max(most - self.bound_prefixes(most), self.promised(self.rows))
        self.batch.reserve(longest, None if most is None else most // longest)

    def bound_prefixes(self, most: int) -> int:
        """Keep no more entries for later prompts than rows leave room for; the room they take."""
        if self.limits.keeps_prefixes and self.batch.can_keep_prefixes:
            taken = max(self.promised(self.rows), self.batch.cache.allocated_entries)
            self.prefixes.bound(most - taken)
        return self.prefixes.allocated_entries

    def keep_prefix(self, index: int) -> None:
        """Keep a row's entries, as far as they stand for a token each."""
        row = self.rows[index]
        known = [*row.prompt[: row.num_read], *row.tokens[: row.num_single]]
        self.prefixes.keep(known, self.batch.cache, index)

    def use_prefixes(self, answering: int) -> None:
        """Give rows of which nothing was read the entries of prompts that began the same.

        At least one token is left to be read.  Drafters that read the prompts need all of them,
        and exact rows entries that were computed as theirs are.
        """
        for index, row in enumerate(self.rows[answering:], answering):
            own = row.settings.exact or self.mode(row).reads_prompts
            if row.num_read == 0 and not own:
                chain = self.prefixes.find(row.prompt[:-1])
                if chain:
                    row.num_cached = self.prefixes.load(chain, self.batch.cache, index)
                    row.num_read = row.num_cached
                    self.batch.count(slice(index, index + 1), [row.num_cached], [row.num_cached])

    def read(self, answering: int, interrupt: Interrupt | None) -> list[RowStep]:
        """Read on in the prompts; rows that are through have their first tokens."""
        if not self.rows[answering:]:
            return []
        self.use_prefixes(answering)
        may_be_long = interrupt is not None and not answering
        turn = self.turns.next(self.rows[answering:], may_be_long=may_be_long)
        where = self.gather([answering + index for index in turn.members], answering)
        rows = self.rows[where]
        parts = [row.prompt[row.num_read : row.num_read + turn.width] for row in rows]
        try:
            with giving_way(self.model, interrupt if turn.gives_way else None):
                forward = self.batch.read(where, parts, self.taps(rows))
        except GivenUpError:
            self.batch.give_up()
            self.turns.give_way(rows[0])
            return []
        for row, part in zip(rows, parts, strict=True):
            row.num_read += len(part)
            row.gave_way = False
        for mode, members in self.by_mode(rows):
            theirs = [rows[index] for index in members]
            mode.note_prompt(theirs, [parts[i] for i in members], forward.of_rows(members))
        through = [index for index, row in enumerate(rows) if row.left_to_read == 0]
        for index in through:
            self.keep_prefix(where.start + index)
            self.swap(where.start + index, self.num_answering)
            self.num_answering += 1
        return self.begin([rows[index] for index in through], forward.of_rows(through))

    def gather(self, members: Sequence[int], front: int) -> slice:
        """Bring rows together; one that is alone stays where it is."""
        if len(members) == 1:
            return slice(members[0], members[0] + 1)
        wanted = {self.rows[index].key for index in members}
        places = range(front, front + len(members))
        outside = [index for index in members if index not in places]
        for place in places:
            if self.rows[place].key not in wanted:
                self.swap(place, outside.pop())
        return slice(front, front + len(members))

    def swap(self, one: int, other: int) -> None:
        """Exchange two rows."""
        self.rows[one], self.rows[other] = self.rows[other], self.rows[one]
        self.batch.swap_rows(one, other)

    def begin(self, rows: Sequence[Row], forward: Forward) -> list[RowStep]:
        """The first tokens of rows whose prompts were just read."""
        outcomes: dict[int, Outcome] = {}
        for mode, members in self.by_mode(rows):
            theirs = [rows[index] for index in members]
            view = forward.of_rows(members)
            for index, tokens in zip(members, mode.begin(theirs, view), strict=True):
                outcomes[index] = Outcome(emitted=tokens, kept=[], advance=0, scored=[0])
        ordered = [outcomes[index] for index in range(len(rows))]
        return emit(rows, ordered, forward.logits, [1.0] * len(rows), self.on_end)

    def answer(self, answering: int) -> list[RowStep]:
        """One forward for all rows that answer."""
        rows = self.rows[:answering]
        if not rows:
            return []
        asked: list[Columns | None] = [None] * len(rows)
        groups = self.by_mode(rows)
        for mode, members in groups:
            columns = mode.ask([rows[index] for index in members], len(rows))
            for index, each in zip(members, columns, strict=True):
                asked[index] = each
        wanted = [each for each in asked if each is not None]
        where = slice(0, answering)
        forward = self.reader.read(self.batch, where, wanted, self.taps(rows))
        outcomes: dict[int, Outcome] = {}
        for mode, members in groups:
            theirs = [rows[index] for index in members]
            columns = [wanted[index] for index in members]
            outcomes |= zip(
                members, mode.answer(theirs, columns, forward.of_rows(members)), strict=True
            )
        ordered = [outcomes[index] for index in range(len(rows))]
        self.batch.keep(where, [each.kept for each in ordered], [each.advance for each in ordered])
        for row, outcome in zip(rows, ordered, strict=True):
            row.is_merged |= outcome.advance != len(outcome.kept)
            row.num_single += 0 if row.is_merged else len(outcome.kept)
        shares = [self.batch.share(index) for index in range(len(rows))]
        return emit(rows, ordered, forward.logits, shares, self.on_end)

    def by_mode(self, rows: Sequence[Row]) -> list[tuple[DecodingMode, list[int]]]:
        """The modes of these rows, and which rows have each."""
        groups: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            assert row.settings.mode is not None
            groups.setdefault(row.settings.mode, []).append(index)
        return [(self.modes[name], members) for name, members in groups.items()]

    def taps(self, rows: Sequence[Row]) -> list[int]:
        """The base's hidden states that the modes of these rows need."""
        return sorted({tap for row in rows for tap in self.mode(row).taps})
