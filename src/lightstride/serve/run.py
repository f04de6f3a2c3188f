"""Running the application: one socket, one loop, and an end that leaves no stream hanging.

At SIGTERM or SIGINT nothing new is taken; streams that are open may end by themselves for a while,
then they end with an error that says why; a second signal ends everything at once.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from lightstride.errors import ConfigError
from lightstride.serve.api.service import Service

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAST_SECONDS = 5
"""After the answers were ended: how long the last bytes may take."""


class Server(uvicorn.Server):
    """uvicorn's server, with our end."""

    def __init__(
        self, app: ASGIApp, service: Service, *, grace: float, on_ready: Callable[[], None]
    ) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=int(grace) + LAST_SECONDS,
        )
        super().__init__(config)
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        self.service = service
        self.grace = grace
        self.on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self.on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals ask the server to end; they are not raised again when it has."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; at the second signal, end at once."""
        self.force_exit = self.should_exit
        self.service.draining = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let streams end by themselves for a while, then end them."""
        self.service.draining = True
        last = asyncio.create_task(self.end_answers())
        try:
            await super().shutdown(sockets)
        finally:
            last.cancel()
            self.service.close()

    async def end_answers(self) -> None:
        """After the grace, every answer that is still written ends with an error."""
        await asyncio.sleep(self.grace)
        self.service.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; ConfigError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(2048)
    except OSError as error:
        bound.close()
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}") from error
    return bound
