"""Streams: readers that take nothing are dropped, and a chunk is the same however it is encoded."""

import json
import socket
import time

import pytest

from helpers.fake_session import FakeRow, FakeSession
from helpers.served import facts, served, toy_model
from lightstride.generate.session import RowStep
from lightstride.serve.api.chat import ChatReply, ResponseHead
from lightstride.serve.api.completions import CompletionReply
from lightstride.serve.api.follow import FollowedAnswer
from lightstride.serve.api.metrics import Clock, Meters
from lightstride.serve.limits import Limits
from lightstride.serve.schemas.chat import ChatRequest
from lightstride.serve.schemas.completions import CompletionRequest
from lightstride.serve.seam import News

MEGABYTE = 2**20
TEXTS = ("word", ' "quoted" \\ \n', "é ✓ \U0001f300", '"content":""', '"text":""', "\u2028\x7f")
HEAD = ResponseHead("id-1", 1, 'a "content":"" and "text":"" model')


def answer(index: int) -> FollowedAnswer:
    """One of which nothing was told yet."""
    clock = Clock(Meters(), "toy", 1)
    return FollowedAnswer(index, None, None, 1, clock)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", TEXTS)
def test_a_chunk_of_text_alone_is_that_of_any_chunk(text: str) -> None:
    news = News((1,), text, 1)
    answers = [answer(index) for index in range(2)]
    messages = [{"role": "user", "content": "hi"}]
    chat = ChatReply(HEAD, ChatRequest(model="toy", messages=messages), answers, [])
    request = CompletionRequest(model="toy", prompt="hi")
    completion = CompletionReply(HEAD, request, answers, [], 1)
    for each in answers:
        said = chat.told_step(each, news)
        assert said == chat.chunk(each, {"content": text})
        told = json.loads(said.removeprefix(b"data: "))
        assert told["choices"][0]["delta"] == {"content": text}
        assert told["model"] == HEAD.model
        said = completion.told_step(each, news)
        assert said == completion.chunk(completion.choice(each, text, (), None))
        assert json.loads(said.removeprefix(b"data: "))["choices"][0]["text"] == text


class LoudSession(FakeSession):
    """Says a megabyte a step, or many in the first and nothing more."""

    def __init__(self, *args: object, once: bool) -> None:
        super().__init__(*args)
        self.once = once
        self.done = 0

    def step_row(self, row: FakeRow) -> RowStep:
        step = super().step_row(row)
        size = (0 if row.steps > 1 else 32) if self.once else 1
        time.sleep(0.02)
        self.done += step.finish is not None
        return RowStep(**{**vars(step), "text": "x" * size * MEGABYTE})


@pytest.mark.parametrize("once", [False, True])
def test_a_client_that_reads_nothing_is_dropped(once: bool) -> None:
    opened: list[LoudSession] = []

    def open_one(tokenizer: object) -> LoudSession:
        opened.append(LoudSession(tokenizer, once=once))
        return opened[-1]

    limits = Limits(reader_seconds=0.2, keep_alive_seconds=0.1 if once else 15)
    model = toy_model(limits=limits, session=open_one)
    asked = {"model": facts().name, "prompt": "x", "max_tokens": 480, "mode": "ar", "stream": True}
    body = json.dumps({**asked, "ignore_eos": True})
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with served(model, limits=limits) as server:
        port = int(server.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            end = time.monotonic() + 8
            while not opened or not opened[0].num_steps or opened[0].rows:
                assert time.monotonic() < end, "it is still answered"
                time.sleep(0.02)
            assert not opened[0].done
