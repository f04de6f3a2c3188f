"""Many requests at once: the queue, cancellation, failures, and nobody's tokens in another's."""

import asyncio
import random
import threading
import time
from collections.abc import Callable

import httpx
import openai
import pytest

from helpers.fake_session import FakeSession
from helpers.served import Served, served, toy_model
from lightstride.serve.api.service import Defaults
from lightstride.serve.limits import Limits


class PacedSession(FakeSession):
    """A session that waits before every step until it may, and fails where it is told to."""

    def __init__(self, *args: object, pace: float = 0.0, **options: object) -> None:
        super().__init__(*args, **options)
        self.gate = threading.Event()
        self.gate.set()
        self.pace = pace
        self.fails = False
        self.most_rows = 0

    def step(self, interrupt=None):
        self.gate.wait(20)
        time.sleep(self.pace)
        self.most_rows = max(self.most_rows, len(self.rows))
        if self.fails:
            self.fails = False
            raise RuntimeError("out of memory, say")
        return super().step(interrupt)


def paced(**options: object) -> tuple[list[PacedSession], Callable[..., PacedSession]]:
    """Sessions that were opened, and how to open one."""
    opened: list[PacedSession] = []

    def open_one(tokenizer: object) -> PacedSession:
        opened.append(PacedSession(tokenizer, **options))
        return opened[-1]

    return opened, open_one


def ask(tag: str, **fields: object) -> dict:
    message = {"role": "user", "content": tag}
    return {"model": "toy", "messages": [message], "seed": 1, "max_tokens": 40, **fields}


def post(server: Served, **fields: object) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=ask("x", **fields), timeout=30)


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_beyond_the_queue_a_request_is_told_to_come_back() -> None:
    opened, open_one = paced()
    limits = Limits(rows=1, queue=2)
    with served(toy_model(limits=limits, session=open_one), limits=limits) as server:
        wait_for(lambda: opened)
        (session,) = opened
        session.gate.clear()
        engine = server.service.models["toy"].engine
        threads = []
        answers: list[httpx.Response] = []
        for number in range(3):
            thread = threading.Thread(target=lambda: answers.append(post(server)))
            thread.start()
            threads.append(thread)
            wait_for(lambda n=number: len(engine.waiting) + len(engine.running) == n + 1)
            wait_for(lambda: engine.running)
        refused = post(server)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert post(server, n=4).status_code == 429
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**ask("x"))
        session.gate.set()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 3
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=2)
        assert client.chat.completions.create(**ask("x")).choices


def test_no_more_rows_than_allowed_and_entries_are_bounded() -> None:
    opened, open_one = paced(entries=200)
    limits = Limits(rows=4)
    with served(toy_model(limits=limits, session=open_one), limits=limits) as server:
        answer = post(server, n=8, max_tokens=30)
        assert len(answer.json()["choices"]) == 8
        assert 2 <= opened[0].most_rows <= 4  # an answer and its prompt are 54 entries
        refused = post(server, max_tokens=250)
        assert refused.status_code == 400
        assert "never fit" in refused.json()["error"]["message"]
        assert post(server).status_code == 200


def test_a_client_that_goes_frees_its_row() -> None:
    opened, open_one = paced(pace=0.05)
    with served(toy_model(session=open_one)) as server:
        url = f"{server.url}/v1/chat/completions"
        long = {"max_tokens": 400, "ignore_eos": True}
        with httpx.stream("POST", url, json=ask("x", stream=True, **long)) as stream:
            lines = stream.iter_lines()  # kept: one that is dropped closes the stream
            next(lines)
            wait_for(lambda: opened[0].rows)
        wait_for(lambda: not opened[0].rows)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=ask("x", **long), timeout=0.3)
        wait_for(lambda: not opened[0].rows)
        assert opened[0].num_steps < 200


def test_a_step_that_fails_ends_its_answers_and_not_the_server() -> None:
    opened, open_one = paced(pace=0.005)
    with served(toy_model(session=open_one)) as server:
        url = f"{server.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=ask("x", stream=True)) as stream:
            lines = stream.iter_lines()
            next(lines)
            opened[0].fails = True
            rest = [line for line in lines if line]
        assert '"code":"internal_error"' in rest[-2]
        assert "memory" not in rest[-2]
        assert rest[-1] == "data: [DONE]"
        assert post(server).status_code == 200
        opened[-1].fails = True
        assert post(server).status_code == 500
        assert post(server).status_code == 200
        assert len(opened) == 3
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        chunks = client.chat.completions.create(**ask("x"), stream=True)
        next(chunks)
        opened[-1].fails = True
        with pytest.raises(openai.APIError, match="internal error"):
            list(chunks)


@pytest.mark.parametrize("by_default", [False, True])
def test_an_answer_is_exact_where_the_request_or_the_server_says(by_default: bool) -> None:
    asked: list[bool] = []

    class Noting(FakeSession):
        """Notes what it is asked for."""

        def add(self, prompt, settings, key, **options) -> None:
            asked.append(settings.exact)
            super().add(prompt, settings, key, **options)

    defaults = Defaults(max_tokens=8, exact=by_default)
    with served(toy_model(session=Noting), defaults=defaults) as server:
        for extra in ({}, {"exact": True}, {"exact": False}):
            assert post(server, mode="lossless", **extra).status_code == 200
        assert post(server, mode="trust").status_code == (400 if by_default else 200)
    assert asked == [by_default, True, False, *([] if by_default else [False])]


def test_an_answer_that_takes_too_long() -> None:
    _, open_one = paced(pace=0.05)
    limits = Limits(answer_seconds=0.3)
    with served(toy_model(session=open_one), limits=limits) as server:
        answer = post(server, ignore_eos=True)
        assert answer.status_code == 408
        assert answer.json()["error"]["code"] == "timeout"
        streamed = post(server, ignore_eos=True, stream=True)
        assert '"code":"timeout"' in streamed.text
        assert streamed.text.endswith("data: [DONE]\n\n")


def test_silence_is_filled_with_comments() -> None:
    _, open_one = paced(pace=0.2)
    limits = Limits(keep_alive_seconds=0.05)
    with served(toy_model(session=open_one), limits=limits) as server:
        text = post(server, max_tokens=3, stream=True).text
        assert ": keep-alive\n\n" in text
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        chunks = client.chat.completions.create(**ask("x", max_tokens=3), stream=True)
        assert len("".join(c.choices[0].delta.content or "" for c in chunks)) == 3


async def stream_text(
    client: httpx.AsyncClient, url: str, tag: str, leave_after: int | None
) -> str:
    """What a stream says, up to where its reader leaves."""
    body = ask(tag, stream=True, max_tokens=60)
    text = ""
    async with client.stream("POST", url, json=body) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: {"):
                chunk = httpx.Response(200, content=line[6:]).json()
                assert "error" not in chunk, chunk
                text += chunk["choices"][0]["delta"].get("content", "")
            if leave_after is not None and len(text) >= leave_after:
                break
    return text


def test_64_streams_with_cancellations_are_those_of_one_by_one() -> None:
    opened, open_one = paced(pace=0.002)
    limits = Limits(rows=16, queue=64)
    rng = random.Random(0)
    leaves = {f"tag {n}": rng.choice([None, None, rng.randrange(1, 30)]) for n in range(64)}
    with served(toy_model(limits=limits, session=open_one), limits=limits) as server:
        url = f"{server.url}/v1/chat/completions"

        async def all_at_once() -> list[str]:
            async with httpx.AsyncClient(timeout=60, limits=httpx.Limits()) as client:
                tasks = [stream_text(client, url, tag, n) for tag, n in leaves.items()]
                return await asyncio.gather(*tasks)

        texts = asyncio.run(all_at_once())
        assert opened[0].most_rows == 16
        wait_for(lambda: not opened[0].rows)
        for (tag, left), text in zip(leaves.items(), texts, strict=True):
            alone = httpx.post(url, json=ask(tag, max_tokens=60)).json()
            whole = alone["choices"][0]["message"]["content"]
            assert text == whole if left is None else whole.startswith(text)
            assert len(text) >= min(left or 0, len(whole))
        assert len({text[:20] for text in texts if len(text) >= 20}) > 40
