"""An answer on its way from the engine's thread to the event loop."""

import asyncio
from collections.abc import Callable, Sequence

from lightstride.serve.faults import ApiError
from lightstride.serve.seam import Ask, News


class EngineTicket:
    """What the engine has told of one answer and nobody has read yet.

    `ask` and `key` are read by both sides and never change; everything else belongs to the loop.
    """

    def __init__(self, key: str, ask: Ask, cancel: Callable[[str], None]) -> None:
        self.key = key
        self.ask = ask
        self.cancel_at_engine = cancel
        self.loop = asyncio.get_running_loop()
        self.unread: list[News] = []
        self.fault: ApiError | None = None
        self.is_over = False
        self.reader: asyncio.Future[None] | None = None
        """Whoever waits for news: only one may."""

    def tell(self, news: News | ApiError) -> None:
        """Put down what came; called in the loop."""
        if self.is_over:
            return
        if isinstance(news, ApiError):
            self.fault = news
            self.is_over = True
        else:
            self.unread.append(news)
            self.is_over = news.finish is not None
        if self.reader is not None and not self.reader.done():
            self.reader.set_result(None)

    async def news(self) -> Sequence[News]:
        """The next steps, all that have come; none after the last. ApiError where it fails."""
        if not self.unread and not self.is_over:
            self.reader = self.loop.create_future()
            await self.reader
        several, self.unread = self.unread, []
        if self.fault is not None and not several:
            raise self.fault
        return several

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        if not self.is_over:
            self.is_over = True
            self.cancel_at_engine(self.key)
