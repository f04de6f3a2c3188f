"""Who may come in, and how much they may bring: checked before anything is read or computed.

A page of somebody else's may send requests to a server on loopback, also under a name of its own
(DNS rebinding); so a server that listens on loopback answers to loopback's names alone.  Keys are
compared by their hashes, in constant time.
"""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightstride.serve.faults import ApiError
from lightstride.serve.limits import Limits

OPEN_TO_ALL = frozenset({"/", "/health", "/ready", "/version"})
"""Paths that need no key: the page, which asks for one, and what a supervisor watches."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


class Guard:
    """The outermost layer of the application."""

    def __init__(
        self, app: ASGIApp, *, limits: Limits, key: str | None, hosts: Collection[str] | None
    ) -> None:
        self.app = app
        self.limits = limits
        self.key_hash = None if key is None else key_digest(key)
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or say why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self.admit(scope)
        except ApiError as fault:
            await refuse(fault, send)
            return
        body = Body(receive, self.limits)
        await self.app(scope, body.receive, send)

    def admit(self, scope: Scope) -> None:
        """ApiError unless host, key and length are as they must be."""
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        if self.hosts is not None and name not in self.hosts:
            raise ApiError(403, "this server does not answer to that host name", code="wrong_host")
        is_preflight = scope["method"] == "OPTIONS" and "origin" in headers
        if self.key_hash is not None and scope["path"] not in OPEN_TO_ALL and not is_preflight:
            given = headers.get("authorization", "")
            kind, _, key = given.partition(" ")
            matches = hmac.compare_digest(key_digest(key.strip()), self.key_hash)
            if kind.lower() != "bearer" or not matches:
                message = "no API key was given" if not given else "the API key is wrong"
                raise ApiError(401, message, code="invalid_api_key")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self.limits.body_bytes:
            raise too_large(self.limits)


class Body:
    """The body of one request, counted and timed while it is read."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self.inner = receive
        self.limits = limits
        self.size = 0
        self.is_whole = False

    async def receive(self) -> Message:
        """The next part of the body; ApiError where it is too much, or too slow."""
        if self.is_whole:
            return await self.inner()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                message = await self.inner()
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time", code="timeout") from None
        self.size += len(message.get("body", b""))
        if self.size > self.limits.body_bytes:
            raise too_large(self.limits)
        self.is_whole = not message.get("more_body", False)
        return message


def key_digest(text: str) -> bytes:
    """The hash of a key: of one length, whatever the key's."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def too_large(limits: Limits) -> ApiError:
    """A body beyond the limit."""
    return ApiError(413, f"the body is larger than {limits.body_bytes:,} bytes", code="too_large")


async def refuse(fault: ApiError, send: Send) -> None:
    """Send a fault as the whole response."""
    body = json.dumps(fault.body).encode()
    headers = {**fault.headers, "Content-Type": "application/json", "Connection": "close"}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": fault.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
