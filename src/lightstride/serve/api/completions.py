"""`/v1/completions`: what follows one or several prompts, whole or streamed."""

from collections.abc import AsyncGenerator, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lightstride.serve.api.asks import Wish, alternatives, submit
from lightstride.serve.api.chat import Document, ResponseHead, new_head
from lightstride.serve.api.follow import FollowedAnswer, merged, metrics, usage
from lightstride.serve.api.service import Service
from lightstride.serve.api.sse import DONE, EventStream, around, event, quoted, unless_gone
from lightstride.serve.faults import bad
from lightstride.serve.schemas.completions import CompletionRequest
from lightstride.serve.seam import Model, News, Scored


async def complete(service: Service, request: CompletionRequest, http: Request) -> Response:
    """The response to one or several prompts."""
    service.open()
    model = service.model(request.model)
    if request.stream_options is not None and not request.stream:
        raise bad("stream_options needs stream to be true", "stream_options")
    if request.echo and request.logprobs is not None:
        raise bad("prompts are not scored: echo and logprobs exclude each other", "echo")
    count = request.n or 1
    if len(request.prompts) * count > service.limits.choices:
        raise bad(f"at most {service.limits.choices} answers at once", "n")
    prompts = [
        await model.tokenize(prompt, special=True) if isinstance(prompt, str) else tuple(prompt)
        for prompt in request.prompts
    ]
    texts = []
    if request.echo:
        texts = [
            prompt if isinstance(prompt, str) else await model.detokenize(prompt)
            for prompt in request.prompts
            for _ in range(count)
        ]
    wish = Wish(
        max_tokens=request.max_tokens,
        count=count,
        top_logprobs=await alternatives(model, request.logprobs),
    )
    answers = submit(service, model, request, prompts, wish)
    total = sum(map(len, prompts))
    reply = CompletionReply(new_head("cmpl", model), request, answers, texts, total)
    if request.stream:
        return EventStream(service, answers, reply.chunks())
    await unless_gone(http, answers, service.limits.answer_seconds)
    return JSONResponse(reply.whole())


class CompletionReply:
    """One response, whole or chunk by chunk."""

    def __init__(
        self,
        head: ResponseHead,
        request: CompletionRequest,
        answers: Sequence[FollowedAnswer],
        echoes: Sequence[str],
        prompt_tokens: int,
    ) -> None:
        self.head = head
        self.request = request
        self.answers = answers
        self.echoes = echoes
        self.prompt_tokens = prompt_tokens
        self.offsets = [len(echoes[index]) if echoes else 0 for index in range(len(answers))]
        self.around = [
            around(self.chunk(self.choice(each, "", (), None)), b'"text":') for each in answers
        ]
        """What stands before and after the text of a chunk that has nothing but text."""

    def whole(self) -> Document:
        """The response at once."""
        return self.head.document(
            "text_completion",
            choices=[
                self.choice(answer, self.echo(answer) + answer.text, answer.scored, answer.finish)
                for answer in self.answers
            ],
            usage=usage(self.answers, self.prompt_tokens),
            metrics=metrics(self.answers),
        )

    def echo(self, answer: FollowedAnswer) -> str:
        """The prompt, where it is to be said again."""
        return self.echoes[answer.index] if self.echoes else ""

    def choice(
        self, answer: FollowedAnswer, text: str, scored: Sequence[Scored], finish: str | None
    ) -> Document:
        """One answer, or a part of one."""
        logprobs = None
        if self.request.logprobs is not None:
            logprobs = self.logprobs(answer, scored)
        return {
            "index": answer.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish,
        }

    def logprobs(self, answer: FollowedAnswer, scored: Sequence[Scored]) -> Document:
        """How likely tokens were, in the shape of completions."""
        tokens, offsets = [], []
        for one in scored:
            tokens.append(as_text(answer.model, one.token))
            offsets.append(self.offsets[answer.index])
            self.offsets[answer.index] += len(tokens[-1])
        return {
            "tokens": tokens,
            "token_logprobs": [max(one.log_probability, -9999.0) for one in scored],
            "top_logprobs": [
                {
                    as_text(answer.model, token): max(score, -9999.0)
                    for token, score in one.likeliest
                }
                for one in scored
            ],
            "text_offset": offsets,
        }

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The response as events."""
        for answer in self.answers if self.echoes else ():
            yield self.chunk(self.choice(answer, self.echo(answer), (), None))
        async for answer, several in merged(self.answers):
            out = b"".join(self.told_step(answer, news) for news in several)
            if out:
                yield out
        options = self.request.stream_options
        if options is not None and options.include_usage:
            yield event(
                self.head.document(
                    "text_completion",
                    choices=[],
                    usage=usage(self.answers, self.prompt_tokens),
                    metrics=metrics(self.answers),
                )
            )
        yield DONE

    def told_step(self, answer: FollowedAnswer, news: News) -> bytes:
        """The chunk of one step; none where there is nothing to say yet."""
        options = self.request.stream_options
        extra: Document = {}
        if options is not None and options.include_steps:
            extra["step"] = {"tokens": len(news.tokens), "kv_entries": news.kv_entries}
        if not (extra or news.finish or self.request.logprobs is not None):
            before, after = self.around[answer.index]
            return before + quoted(news.text) + after if news.text else b""
        if not (news.text or extra or news.scored or news.finish):
            return b""
        return self.chunk(self.choice(answer, news.text, news.scored or (), news.finish), **extra)

    def chunk(self, choice: Document, **extra: object) -> bytes:
        """One event."""
        return event(self.head.document("text_completion", choices=[choice], **extra))


def as_text(model: Model, token: int) -> str:
    """A token by itself; half a character shows as the sign for that."""
    return model.piece(token).decode("utf-8", "replace")
