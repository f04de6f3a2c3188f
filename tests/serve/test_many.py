"""A real toy model behind the server: many streams at once, and no growth over many requests."""

import asyncio
import gc
import random
from collections.abc import Iterator

import httpx
import psutil
import pytest
from transformers import PreTrainedTokenizerBase

from helpers.served import Served, served, toy_model
from helpers.smash_toys import BASES, sharp, toy
from lightstride.generate.session import Limits as SessionLimits
from lightstride.generate.session import Session
from lightstride.serve.limits import Limits
from lightstride.smash.decode.decoder import SmashDecoder

LIMITS = Limits(rows=16, queue=64)


def smashed_session(tokenizer: PreTrainedTokenizerBase) -> Session:
    decoder = SmashDecoder(toy(sharp(BASES["llama"]())), tokenizer)
    return decoder.session(SessionLimits(entries=4096, chunk=8, keeps_prefixes=True))


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(toy_model(limits=LIMITS, session=smashed_session), limits=LIMITS) as s:
        yield s


def body(number: int) -> dict[str, object]:
    """A request of its own: tag, length, mode, temperature."""
    rng = random.Random(number)
    return {
        "model": "toy",
        "prompt": f"tag {number} " * rng.choice((1, 1, 8)),
        "max_tokens": rng.randrange(4, 24),
        "seed": number,
        "temperature": rng.choice((0, 1)),
        "mode": rng.choice(("lossless", "ar")),
        "ignore_eos": True,
        "logit_bias": {"65": 1} if number % 5 == 0 else None,
    }


async def stream(client: httpx.AsyncClient, url: str, number: int, leave: int | None) -> str:
    text, chunks = "", 0
    asked = {**body(number), "stream": True}
    async with client.stream("POST", f"{url}/v1/completions", json=asked) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                chunk = httpx.Response(200, content=line[6:]).json()
                assert "error" not in chunk, chunk
                text += chunk["choices"][0]["text"]
                chunks += 1
            if chunks == leave:
                break
    return text


async def all_at_once(url: str, leaves: dict[int, int | None]) -> list[str]:
    async with httpx.AsyncClient(timeout=120) as client:
        return await asyncio.gather(*(stream(client, url, n, leave) for n, leave in leaves.items()))


def test_64_streams_with_cancellations_are_those_of_one_by_one(server: Served) -> None:
    rng = random.Random(1)
    leaves = {number: rng.choice((None, None, 1, 3)) for number in range(64)}
    texts = asyncio.run(all_at_once(server.url, leaves))
    whole = 0
    for (number, leave), text in zip(leaves.items(), texts, strict=True):
        alone = httpx.post(f"{server.url}/v1/completions", json=body(number), timeout=60).json()
        expected = alone["choices"][0]["text"]
        assert text == expected if leave is None else expected.startswith(text)
        whole += leave is None
    assert whole > 20


def test_a_prompt_that_was_read_before_is_not_read_again(server: Served) -> None:
    asked = {**body(1), "prompt": "an opening that nobody else has, of 50 tokens: one"}
    usages = []
    for _ in range(2):
        answer = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=60).json()
        usages.append(answer["usage"])
    first, second = (usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    assert (first, second) == (0, 48)
    meters = httpx.get(f"{server.url}/metrics").text
    found = {
        name: float(line.rsplit(" ", 1)[1])
        for line in meters.splitlines()
        for name in ("queries", "hits")
        if line.startswith(f"vllm:prefix_cache_{name}_total{{")
    }
    assert 48 <= found["hits"] < found["queries"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_500_requests_leave_no_memory_behind(server: Served) -> None:
    def some(first: int, count: int) -> int:
        for start in range(first, first + count, 25):
            rng = random.Random(start)
            leaves = {n: rng.choice((None, None, 2)) for n in range(start, start + 25)}
            asyncio.run(all_at_once(server.url, leaves))
        gc.collect()
        return psutil.Process().memory_info().rss

    before = some(0, 150)
    after = some(150, 500)
    assert after - before < 16 * 2**20
    engine = server.service.models["toy"].engine
    assert not engine.running
    assert not engine.choices
    assert not engine.cancelled
