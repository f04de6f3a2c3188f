"""One thread for the engines of all models."""

import threading
import time

import httpx

from helpers.fake_session import FakeSession
from helpers.served import served, toy_model
from lightstride.serve.engine.stepper import Stepper

LONG = {"max_tokens": 400, "ignore_eos": True}


class NotingSession(FakeSession):
    """A session that notes in which threads it was stepped, and whether it was interrupted."""

    def __init__(self, *args: object, is_slow: bool = False) -> None:
        super().__init__(*args)
        self.is_slow = is_slow
        self.threads: set[int] = set()
        self.interrupted = 0

    def step(self, interrupt=None):
        self.threads.add(threading.get_ident())
        end = time.monotonic() + (0.2 if self.is_slow else 0)
        while time.monotonic() < end and not interrupt():
            time.sleep(0.001)
        self.interrupted += time.monotonic() < end
        return super().step(interrupt)


def post(url: str, model: str, **fields: object) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "seed": 1, **fields}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)


def test_two_models_are_stepped_by_one_thread_that_ends_with_them() -> None:
    stepper, opened = Stepper(), []

    def open_one(tokenizer: object) -> NotingSession:
        opened.append(NotingSession(tokenizer, is_slow=not opened))
        return opened[-1]

    slow, quick = (toy_model(name, session=open_one, stepper=stepper) for name in "ab")
    with served(slow, quick) as server:
        alone = post(server.url, "b", max_tokens=40).json()["choices"]
        busy = threading.Thread(target=lambda: post(server.url, "a", **LONG))
        busy.start()
        while not opened[0].num_steps:
            time.sleep(0.01)
        assert post(server.url, "b", max_tokens=40).json()["choices"] == alone
        assert opened[0].interrupted
        assert opened[0].threads == opened[1].threads
        assert len(opened[0].threads) == 1
    busy.join(30)
    stepper.join()
    assert not stepper.runs
    assert stepper.thread is not None
    assert not stepper.thread.is_alive()
