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


class SlowReaderError(Exception):
    """A client does not take what is sent."""


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
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the body ends, the client has gone, or the time is over."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        writer = asyncio.ensure_future(self.write(send))
        others = [
            asyncio.ensure_future(disconnected(receive)),
            asyncio.ensure_future(self.keep_alive(send)),
        ]
        try:
            await asyncio.wait({writer, others[0]}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writer, *others):
                task.cancel()
            await asyncio.gather(writer, *others, return_exceptions=True)
            release(self.answers)

    async def write(self, send: Send) -> None:
        """Send the body, and an error where it fails."""
        try:
            await self.write_all(send)
            await self.put(send, b"", more=False)
        except SlowReaderError:
            LOG.info("a client that read nothing was dropped")

    async def write_all(self, send: Send) -> None:
        """Send the body, or as much of it as there is time for."""
        seconds = self.limits.answer_seconds
        try:
            async with asyncio.timeout(seconds), contextlib.aclosing(self.chunks()) as chunks:
                async for chunk in chunks:
                    await self.put(send, chunk)
        except TimeoutError:
            await self.put(send, self.say(too_late(seconds)))

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The body; a fault is said as the last of it."""
        try:
            async with contextlib.aclosing(self.body_iterator) as body:
                async for chunk in body:
                    yield chunk
        except ApiError as fault:
            self.on_fault(fault)
            yield self.say(fault)
        except Exception:
            LOG.exception("a stream failed")
            self.on_fault(internal())
            yield self.say(internal())

    async def put(self, send: Send, body: bytes, *, more: bool = True) -> None:
        """Send some bytes; SlowReaderError where the client does not take them."""
        try:
            async with asyncio.timeout(self.limits.reader_seconds):
                await send({"type": "http.response.body", "body": body, "more_body": more})
        except TimeoutError:
            raise SlowReaderError from None
        self.last_sent = time.monotonic()

    async def keep_alive(self, send: Send) -> None:
        """Send a comment whenever nothing else was sent for a while."""
        pause = self.limits.keep_alive_seconds
        while True:
            silent = time.monotonic() - self.last_sent
            if silent >= pause:
                await self.put(send, b": keep-alive\n\n")
                silent = 0.0
            await asyncio.sleep(pause - silent)


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
