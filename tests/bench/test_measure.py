"""Speed: the same work for every model, in turn."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.bench.machine import Machine
from lightstride.bench.measure import (
    Load,
    Run,
    Spread,
    measure_weights,
    random_prompts,
    ratios,
    run_in_turn,
    run_once,
    summarize,
)
from lightstride.errors import ConfigError
from lightstride.generate import PlainDecoder, Settings, Step

RUN = Run(first_seconds=0.5, decode_seconds=2.0, tokens=40, steps=20, kv_bytes=1000, peak_bytes=500)
LOAD = Load(batch=2, prompt=10, new_tokens=21)


def decoder(**sizes: int) -> PlainDecoder:
    return PlainDecoder(tiny_llama(**sizes), byte_tokenizer())


@pytest.mark.parametrize("ends", [None, list(range(260))])
def test_a_run_does_all_its_work_whatever_the_model_says(ends: list[int] | None) -> None:
    one = decoder()
    one.model.config.eos_token_id = ends
    done = run_once(one, Load(batch=3, prompt=5, new_tokens=4), seed=0)
    assert (done.tokens, done.steps) == (3 * 3, 3)
    layers, heads, head_dim, width = 2, 2, 8, 4
    assert done.kv_bytes == 3 * (5 + 3) * 2 * layers * heads * head_dim * width
    assert done.first_seconds > 0
    assert done.decode_seconds > 0


def test_prompts_are_the_same_for_the_same_seed_and_fit_the_context() -> None:
    model = tiny_llama()
    prompts = random_prompts(model, LOAD, 0)
    assert prompts == random_prompts(model, LOAD, 0) != random_prompts(model, LOAD, 1)
    assert [len(prompt) for prompt in prompts] == [10, 10]
    with pytest.raises(ConfigError, match="more than the model's context of 512"):
        random_prompts(model, replace(LOAD, prompt=500), 0)


def test_weights_are_counted_by_what_a_step_reads() -> None:
    tied, untied = (measure_weights(tiny_llama(tied=tied)) for tied in (True, False))
    embedding = 260 * 32
    attention, ffn, norms = (4 + 2 + 2 + 4) * 8 * 32, 3 * 48 * 32, 2 * 32
    assert tied.block_weights == untied.block_weights == 2 * (attention + ffn)
    assert tied.head_weights == embedding
    assert tied.parameters == 2 * (attention + ffn + norms) + 32 + embedding
    assert tied.read_bytes == tied.total_bytes == 4 * tied.parameters
    assert untied.total_bytes == tied.total_bytes + 4 * embedding
    assert untied.read_bytes == tied.read_bytes


class Noted:
    """A decoder that only writes down when it was run."""

    def __init__(self, name: str, order: list[str]) -> None:
        self.model, self.tokenizer = tiny_llama(), byte_tokenizer()
        self.name, self.order = name, order

    def steps(self, prompts: Sequence[Sequence[int]], settings: Settings) -> Iterator[Step]:
        self.order.append(self.name)
        for number in range(2):
            yield Step(
                tokens=((1, 2),) * len(prompts),
                text=("",) * len(prompts),
                finished=(None,) * len(prompts),
                kv_entries=(number,) * len(prompts),
                entry_bytes=8,
                allocated_bytes=0,
                near_ties=(0,) * len(prompts),
            )


def test_models_run_in_turn_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    runs = run_in_turn([Noted("a", order), Noted("b", order)], LOAD, repeats=3, seed=0)
    assert order == ["a", "b"] * 4
    assert [len(mine) for mine in runs] == [3, 3]
    assert runs[0][0].kv_bytes == 8 * 2 * (10 + 1)
    assert runs[0][0].tokens / runs[0][0].steps / LOAD.batch == 2


def test_summary() -> None:
    runs = [RUN, replace(RUN, decode_seconds=4.0), replace(RUN, decode_seconds=1.0)]
    weights = measure_weights(tiny_llama())
    found = summarize(runs, LOAD, weights, Machine(bandwidth=1e9, matrix_rate=1e9))
    assert found["decode_tokens_per_second"] == {"median": 20, "low": 10, "high": 40}
    assert found["tokens_per_step"] == 1
    assert found["peak_bytes"] == weights.total_bytes + 500
    assert found["share_of_bandwidth"] == pytest.approx((weights.read_bytes + 1000) / 0.1 / 1e9)
    operations = 2 * 2 * (10 * weights.block_weights + weights.head_weights)
    assert found["share_of_matrix_rate"] == pytest.approx(operations / 0.5 / 1e9)
    assert (
        summarize([replace(RUN, peak_bytes=None)], LOAD, weights, Machine(1, 1))["peak_bytes"]
        is None
    )


def test_ratios_are_of_runs_of_the_same_round() -> None:
    slow = [replace(RUN, first_seconds=1.0, decode_seconds=s, kv_bytes=2000) for s in (4.0, 8.0)]
    fast = [replace(RUN, decode_seconds=s) for s in (2.0, 2.0)]
    found = ratios(fast, slow)
    assert found["first_token"] == {"median": 2, "low": 2, "high": 2}
    assert found["decode"] == {"median": 3, "low": 2, "high": 4}
    assert found["kv_bytes"] == 0.5
    assert Spread.of([3, 1, 2]) == Spread(2, 1, 3)
