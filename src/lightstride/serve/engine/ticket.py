"""An answer on its way from the engine's thread to the event loop."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

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
        self.unread: deque[News] = deque()
        self.fault: ApiError | None = None
        self.is_over = False
        self.has_more = asyncio.Event()

    def tell(self, news: News | ApiError) -> None:
        """Put down what came; called in the loop."""
        if self.is_over:
            return
        if isinstance(news, ApiError):
            self.fault = news
        else:
            self.unread.append(news)
        self.is_over = isinstance(news, ApiError) or news.finish is not None
        self.has_more.set()

    async def news(self) -> AsyncIterator[Sequence[News]]:
        """Steps as they come; raises ApiError where the answer fails."""
        while self.unread or not self.is_over:
            await self.has_more.wait()
            self.has_more.clear()
            several = tuple(self.unread)
            self.unread.clear()
            if several:
                yield several
        if self.fault is not None:
            raise self.fault

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        if not self.is_over:
            self.is_over = True
            self.cancel_at_engine(self.key)
