"""Sessions of several memory plans: one bound on the entries of all, whoever is there."""

import random

from helpers.memory_toys import mixed_memory
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.config.decoding import Settings
from lightstride.generate import Limits, PlainDecoder, Session
from lightstride.serve.engine.sessions import Sessions

ENTRIES = 500


def some_sessions() -> Sessions:
    model = tiny_llama()
    memories = {1.0: None, 0.5: mixed_memory(model, 1), 0.25: mixed_memory(model, 2)}

    def open_session(budget: float) -> Session:
        decoder = PlainDecoder(model, byte_tokenizer(), memory=memories[budget])
        return decoder.session(Limits(entries=ENTRIES, chunk=16, keeps_prefixes=True))

    return Sessions(open_session)


def test_rows_of_all_plans_share_one_bound() -> None:
    sessions, rng = some_sessions(), random.Random(0)
    settings = Settings(max_new_tokens=20, ignore_end_tokens=True)
    waiting = [(str(n), rng.choice((1.0, 0.5, 0.25))) for n in range(40)]
    said: dict[str, int] = {}
    most_running = 0
    while waiting or sessions.owners:
        while waiting:
            key, budget = waiting[0]
            prompt = [rng.randrange(256) for _ in range(rng.randrange(20, 60))]
            if sessions.owners and not sessions.fits(budget, len(prompt), settings):
                break
            sessions.add(budget, prompt, settings, key)
            waiting.pop(0)
        if rng.random() < 0.1 and sessions.owners:
            sessions.cancel(rng.choice(list(sessions.owners)))
        for row in sessions.step():
            said[row.key] = said.get(row.key, 0) + len(row.tokens)
        most_running = max(most_running, len(sessions.owners))
        assert sum(each.promised_entries for each in sessions.opened.values()) <= ENTRIES
        kept = sessions.opened[1.0]
        assert kept.allocated_bytes <= ENTRIES * max(1, kept.entry_bytes)
        assert sessions.free_entries == ENTRIES - sum(
            each.promised_entries for each in sessions.opened.values()
        )
    assert len(sessions.opened) == 3
    assert most_running > 3
    assert sum(count == 20 for count in said.values()) > 20
