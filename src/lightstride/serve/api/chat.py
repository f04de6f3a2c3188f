"""`/v1/chat/completions`: from a conversation to the next message, whole or streamed."""

import json
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lightstride.serve.api.asks import Wish, alternatives, grammar_of, submit
from lightstride.serve.api.follow import FollowedAnswer, merged, metrics, usage
from lightstride.serve.api.service import Service
from lightstride.serve.api.sse import DONE, EventStream, around, event, quoted, unless_gone
from lightstride.serve.api.toolcalls import CallReader, forced_schema
from lightstride.serve.faults import bad
from lightstride.serve.limits import Limits
from lightstride.serve.schemas.chat import AssistantMessage, ChatRequest, Message, plain_text
from lightstride.serve.schemas.formats import wanted_schema
from lightstride.serve.schemas.tools import NamedTool
from lightstride.serve.seam import Model, News, Scored

Document = dict[str, object]


@dataclass(frozen=True)
class ResponseHead:
    """What all parts of a response begin with."""

    id: str
    created: int
    model: str

    def document(self, kind: str, **rest: object) -> Document:
        """A response or a chunk."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            **rest,
        }


def new_head(prefix: str, model: Model) -> ResponseHead:
    """The head of a new response."""
    return ResponseHead(f"{prefix}-{secrets.token_hex(12)}", int(time.time()), model.facts.name)


async def chat(service: Service, request: ChatRequest, http: Request) -> Response:
    """The response to a conversation."""
    service.open()
    model = service.model(request.model)
    names = tool_names(request, service.limits)
    if request.top_logprobs is not None and not request.logprobs:
        raise bad("top_logprobs needs logprobs to be true", "top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise bad("stream_options needs stream to be true", "stream_options")
    tools = [tool.model_dump(exclude_none=True) for tool in request.tools or []] if names else None
    prompt = await model.chat(as_template_reads(request.messages), tools)
    forced = forced_schema(request.tools or [], request.tool_choice)
    schema = wanted_schema(request.response_format) if forced is None else forced
    wish = Wish(
        max_tokens=request.max_completion_tokens or request.max_tokens,
        count=request.n or 1,
        top_logprobs=await alternatives(
            model, (request.top_logprobs or 0) if request.logprobs else None
        ),
        grammar=await grammar_of(model, schema, service.limits),
        field="messages",
    )
    answers = submit(service, model, request, [prompt], wish)
    reply = ChatReply(new_head("chatcmpl", model), request, answers, names)
    if request.stream:
        return EventStream(service, answers, reply.chunks())
    await unless_gone(http, answers, service.limits.answer_seconds)
    return JSONResponse(reply.whole())


def tool_names(request: ChatRequest, limits: Limits) -> list[str]:
    """Names of the tools that may be called; ApiError where the request contradicts itself."""
    tools = request.tools or []
    names = [tool.function.name for tool in tools]
    if len(tools) > limits.tools:
        raise bad(f"at most {limits.tools} tools", "tools")
    if len(set(names)) < len(names):
        raise bad("two tools have the same name", "tools")
    if not tools and request.tool_choice not in (None, "none"):
        raise bad("tool_choice was given without tools", "tool_choice")
    chosen = request.tool_choice
    if isinstance(chosen, NamedTool) and chosen.function.name not in names:
        raise bad(f"there is no tool {chosen.function.name!r}", "tool_choice")
    if chosen == "none":
        return []
    if tools and wanted_schema(request.response_format) is not None:
        raise bad("an answer cannot be of a format and call tools", "response_format")
    return names


def as_template_reads(messages: Sequence[Message]) -> list[Document]:
    """The conversation as templates expect it; ApiError where a call's arguments are no JSON."""
    read: list[Document] = []
    for message in messages:
        role = "system" if message.role == "developer" else message.role
        one: Document = {"role": role, "content": plain_text(message.content)}
        if isinstance(message, AssistantMessage) and message.tool_calls:
            one["tool_calls"] = [
                {"type": "function", "id": call.id, "function": called(call.function)}
                for call in message.tool_calls
            ]
        read.append(one)
    return read


def called(function: object) -> Document:
    """A call with its arguments as values; ApiError where they are none."""
    name, text = getattr(function, "name"), getattr(function, "arguments")  # noqa: B009
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        raise bad(f"the arguments of {name} are not JSON", "messages") from None
    return {"name": name, "arguments": arguments}


class ChatReply:
    """One response, its answers followed; whole, or chunk by chunk."""

    def __init__(
        self,
        head: ResponseHead,
        request: ChatRequest,
        answers: Sequence[FollowedAnswer],
        names: Sequence[str],
    ) -> None:
        self.head = head
        self.request = request
        self.answers = answers
        self.readers = [CallReader(names) if names else None for _ in answers]
        self.around = [around(self.chunk(each, {"content": ""}), b'"content":') for each in answers]
        """What stands before and after the text of a chunk that has nothing but text."""

    @property
    def usage(self) -> Document:
        """Tokens in and out."""
        return usage(self.answers, self.answers[0].prompt_tokens)

    def whole(self) -> Document:
        """The response at once."""
        return self.head.document(
            "chat.completion",
            choices=[self.choice(answer) for answer in self.answers],
            usage=self.usage,
            metrics=metrics(self.answers),
            service_tier="default",
        )

    def choice(self, answer: FollowedAnswer) -> Document:
        """One answer of the whole response."""
        reader = self.readers[answer.index]
        text = answer.text
        calls: list[Document] = []
        if reader is not None:
            shown = reader.feed(answer.text)
            rest, calls = reader.finish()
            text = shown + rest
        message: Document = {
            "role": "assistant",
            "content": None if calls and not text.strip() else text,
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = calls
        return {
            "index": answer.index,
            "message": message,
            "logprobs": self.logprobs(answer, answer.scored),
            "finish_reason": "tool_calls" if calls else answer.finish,
        }

    def logprobs(self, answer: FollowedAnswer, scored: Sequence[Scored]) -> Document | None:
        """How likely tokens were, in the shape of chat."""
        if not self.request.logprobs:
            return None
        return {
            "content": [
                {
                    **told(answer.model, one.token, one.log_probability),
                    "top_logprobs": [told(answer.model, *other) for other in one.likeliest],
                }
                for one in scored
            ],
            "refusal": None,
        }

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The response as events."""
        for answer in self.answers:
            yield self.chunk(answer, {"role": "assistant", "content": ""})
        async for answer, several in merged(self.answers):
            out = b"".join(self.told_step(answer, news) for news in several)
            if out:
                yield out
        yield self.last() + DONE

    def told_step(self, answer: FollowedAnswer, news: News) -> bytes:
        """The chunks of one step; none where there is nothing to say yet."""
        reader = self.readers[answer.index]
        text = news.text if reader is None else reader.feed(news.text)
        options = self.request.stream_options
        extra: Document = {}
        if options is not None and options.include_steps:
            extra["step"] = {"tokens": len(news.tokens), "kv_entries": news.kv_entries}
        if self.request.logprobs:
            extra["scored"] = news.scored or ()
        out = b""
        if extra:
            out = self.chunk(answer, {"content": text} if text else {}, **extra)
        elif text:
            before, after = self.around[answer.index]
            out = before + quoted(text) + after
        if news.finish is not None:
            out += self.end(answer)
        return out

    def end(self, answer: FollowedAnswer) -> bytes:
        """The last chunks of one answer: its calls, and why it ended."""
        reader = self.readers[answer.index]
        text, calls = ("", []) if reader is None else reader.finish()
        out = self.chunk(answer, {"content": text}) if text else b""
        for place, call in enumerate(calls):
            out += self.chunk(answer, {"tool_calls": [{"index": place, **call}]})
        reason = "tool_calls" if calls else answer.finish
        return out + self.chunk(answer, {}, finish_reason=reason)

    def chunk(self, answer: FollowedAnswer, delta: Mapping[str, object], **extra: object) -> bytes:
        """One event of one answer."""
        scored = extra.pop("scored", ())
        assert isinstance(scored, Sequence)
        choice = {
            "index": answer.index,
            "delta": delta,
            "logprobs": self.logprobs(answer, scored) if scored else None,
            "finish_reason": extra.pop("finish_reason", None),
        }
        return event(self.head.document("chat.completion.chunk", choices=[choice], **extra))

    def last(self) -> bytes:
        """The usage, where it is wanted."""
        options = self.request.stream_options
        if options is None or not options.include_usage:
            return b""
        return event(
            self.head.document(
                "chat.completion.chunk",
                choices=[],
                usage=self.usage,
                metrics=metrics(self.answers),
            )
        )


def told(model: Model, token: int, log_probability: float) -> Document:
    """A token as chat's logprobs show it."""
    piece = model.piece(token)
    return {
        "token": piece.decode("utf-8", "replace"),
        "logprob": max(log_probability, -9999.0),
        "bytes": list(piece),
    }
