"""An answer as it comes, and what it has cost so far."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from lightstride.serve.api.metrics import Clock
from lightstride.serve.seam import Finish, Model, News, Scored, Ticket


class FollowedAnswer:
    """One choice of a response: its ticket, and all that was told of it."""

    def __init__(self, index: int, model: Model, ticket: Ticket, prompt: int, clock: Clock) -> None:
        self.index = index
        self.model = model
        self.ticket = ticket
        self.prompt_tokens = prompt
        self.clock = clock
        self.text = ""
        self.num_tokens = 0
        self.histogram: list[int] = []
        """How many steps brought one token, two, and so on."""
        self.kv_entries = 0
        self.cached_tokens = 0
        self.finish: Finish | None = None
        self.scored: list[Scored] = []

    @property
    def num_steps(self) -> int:
        """Steps of the base model that brought something."""
        return sum(self.histogram)

    async def steps(self) -> AsyncIterator[tuple["FollowedAnswer", Sequence[News]]]:
        """The answer itself and its next steps; whoever stops listening cancels it."""
        try:
            while several := await self.ticket.news():
                for news in several:
                    self.note(news)
                yield self, several
        finally:
            self.ticket.cancel()
            self.clock.close(self.num_steps)

    def note(self, news: News) -> None:
        """Add one step to what is known."""
        self.clock.note(news)
        self.text += news.text
        self.kv_entries = news.kv_entries
        self.cached_tokens = max(self.cached_tokens, news.cached_tokens)
        self.finish = news.finish
        if news.scored:
            self.scored.extend(news.scored)
        said = len(news.tokens)
        if said:
            self.num_tokens += said
            if said > len(self.histogram):
                self.histogram += [0] * (said - len(self.histogram))
            self.histogram[said - 1] += 1

    async def whole(self) -> None:
        """Wait until nothing more comes."""
        async for _ in self.steps():
            pass


async def gather(answers: Sequence[FollowedAnswer]) -> None:
    """Wait for all; where one fails the others are cancelled."""
    tasks = [asyncio.create_task(answer.whole()) for answer in answers]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        release(answers)


def release(answers: Sequence[FollowedAnswer]) -> None:
    """Give up the rows of answers that have not ended, followed or not."""
    for answer in answers:
        answer.ticket.cancel()


def merged(
    answers: Sequence[FollowedAnswer],
) -> AsyncIterator[tuple[FollowedAnswer, Sequence[News]]]:
    """The steps of all answers in the order in which they come."""
    return answers[0].steps() if len(answers) == 1 else queued(answers)


async def queued(
    answers: Sequence[FollowedAnswer],
) -> AsyncIterator[tuple[FollowedAnswer, Sequence[News]]]:
    """What `merged` gives of any number of answers, each followed by a task."""
    queue: asyncio.Queue[tuple[FollowedAnswer, Sequence[News]] | BaseException | None] = (
        asyncio.Queue()
    )

    async def feed(answer: FollowedAnswer) -> None:
        try:
            async for step in answer.steps():
                queue.put_nowait(step)
        except Exception as error:
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    feeders = [asyncio.create_task(feed(answer)) for answer in answers]
    try:
        ended = 0
        while ended < len(answers):
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                ended += 1
            else:
                yield item
    finally:
        for feeder in feeders:
            feeder.cancel()
        await asyncio.gather(*feeders, return_exceptions=True)


def usage(answers: Sequence[FollowedAnswer], prompt_tokens: int) -> dict[str, object]:
    """Tokens in and out, as OpenAI counts them, and KV entries."""
    said = sum(answer.num_tokens for answer in answers)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": said,
        "total_tokens": prompt_tokens + said,
        "prompt_tokens_details": {
            "cached_tokens": max((answer.cached_tokens for answer in answers), default=0)
        },
        "kv_entries": sum(answer.kv_entries for answer in answers),
    }


def metrics(answers: Sequence[FollowedAnswer]) -> dict[str, object]:
    """What the steps brought, under vLLM's names."""
    length = max((len(answer.histogram) for answer in answers), default=0)
    histogram = [
        sum(answer.histogram[place] for answer in answers if place < len(answer.histogram))
        for place in range(length)
    ]
    steps, said = sum(histogram), sum(answer.num_tokens for answer in answers)
    return {
        "speculative_decoding": {
            "mean_acceptance_length": said / steps if steps else 0.0,
            "acceptance_histogram": histogram,
            "num_spec_steps": steps,
        },
        "kv_entries": sum(answer.kv_entries for answer in answers),
    }
