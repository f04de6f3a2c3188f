"""Streams of server-sent events: they end properly, and notice when nobody listens.

One chunk of the body is written at once, whatever number of events it holds.  A client that reads
nothing for too long is dropped; silence is filled with comments; whatever goes wrong becomes one
event with the error, and the end.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from lightstride.serve.api.follow import FollowedAnswer, gather, release
from lightstride.serve.api.service import Service
from lightstride.serve.faults import ApiError, internal

LOG = logging.getLogger("lightstride.serve")
DONE = b"data: [DONE]\n\n"
COMMENT = {"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True}


def too_late(seconds: float) -> ApiError:
    """An answer that would have taken too long."""
    return ApiError(408, f"no whole answer within {seconds:g} s", code="timeout")


def event(document: Mapping[str, object], name: str | None = None) -> bytes:
    """One event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + msgspec.json.encode(document) + b"\n\n"


def failed(fault: ApiError) -> bytes:
    """How a chat or completion says that it goes no further."""
    return event(fault.body) + DONE


quoted = msgspec.json.encode
"""A text as JSON."""


def around(empty: bytes, field: bytes) -> tuple[bytes, bytes]:
    """What stands before and after a text in an event, given the event with an empty one.

    Chunks of a stream differ in their text alone: the rest is encoded once.
    """
    before, _, after = empty.rpartition(field + b'""')
    return before + field, after


class EventStream(Response):
    """A response whose body are events."""

    media_type = "text/event-stream"

    def __init__(
        self,
        service: Service,
        answers: Sequence[FollowedAnswer],
        body: AsyncGenerator[bytes],
        *,
        say: Callable[[ApiError], bytes] = failed,
    ) -> None:
        self.answers = answers
        self.body_iterator = body
        self.limits = service.limits
        self.say = say
        self.on_fault = service.meters.note_fault
        self.status_code = 200
        self.background = None
        self.last_sent = time.monotonic()
        self.is_sending = False
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the body ends, the client has gone, or the time is over."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        tasks = [
            asyncio.ensure_future(self.write(send)),
            asyncio.ensure_future(disconnected(receive)),
            asyncio.ensure_future(self.watch(send)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            release(self.answers)

    async def write(self, send: Send) -> None:
        """Send the body, or as much of it as there is time for; a fault is said as its last."""
        seconds = self.limits.answer_seconds
        try:
            async with (
                asyncio.timeout(seconds) as time_limit,
                contextlib.aclosing(self.body_iterator) as body,
            ):
                async for chunk in body:
                    await self.put(send, chunk)
        except ApiError as fault:
            self.on_fault(fault)
            await self.put(send, self.say(fault))
        except Exception:
            if time_limit.expired():
                await self.put(send, self.say(too_late(seconds)))
            else:
                LOG.exception("a stream failed")
                self.on_fault(internal())
                await self.put(send, self.say(internal()))
        await self.put(send, b"", more=False)

    async def put(self, send: Send, body: bytes, *, more: bool = True) -> None:
        """Send some bytes; that it does not take too long is watched, which costs no timer here."""
        self.last_sent = time.monotonic()
        self.is_sending = True
        await send({"type": "http.response.body", "body": body, "more_body": more})
        self.is_sending = False

    async def watch(self, send: Send) -> None:
        """Fill silence with comments, until the client has taken nothing for too long."""
        pause, patience = self.limits.keep_alive_seconds, self.limits.reader_seconds
        while True:
            passed = time.monotonic() - self.last_sent
            if self.is_sending:
                if passed >= patience:
                    break
                await asyncio.sleep(patience - passed)
                continue
            if passed >= pause:
                try:
                    async with asyncio.timeout(patience):
                        await send(COMMENT)
                except TimeoutError:
                    break
                self.last_sent = time.monotonic()
                passed = 0.0
            # Not longer than a client may read nothing: it might begin now.
            await asyncio.sleep(min(pause - passed, patience))
        LOG.info("a client that read nothing was dropped")


async def disconnected(receive: Callable[[], Awaitable[Message]]) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, answers: Sequence[FollowedAnswer], seconds: float) -> None:
    """Wait for all answers, which are cancelled where the client goes or the time is over."""
    gone = asyncio.ensure_future(disconnected(request.receive))
    task = asyncio.ensure_future(gather(answers))
    try:
        await asyncio.wait({gone, task}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return
        if gone.done():
            raise ApiError(499, "the client has gone", code="cancelled")
        raise too_late(seconds)
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(gone, task, return_exceptions=True)
        release(answers)
