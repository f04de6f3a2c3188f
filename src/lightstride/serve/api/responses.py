"""`/v1/responses` for text: OpenAI's newer shape, whole or as named events; nothing is stored."""

import secrets
import time
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lightstride.serve.api.asks import Wish, grammar_of, submit
from lightstride.serve.api.chat import Document
from lightstride.serve.api.follow import FollowedAnswer, metrics
from lightstride.serve.api.service import Service
from lightstride.serve.api.sse import EventStream, event, unless_gone
from lightstride.serve.faults import ApiError
from lightstride.serve.schemas.formats import wanted_schema
from lightstride.serve.schemas.responses import ResponseRequest


async def respond(service: Service, request: ResponseRequest, http: Request) -> Response:
    """The response to an input."""
    service.open()
    model = service.model(request.model)
    prompt = await model.chat(conversation(request), None)
    schema = wanted_schema(None if request.text is None else request.text.format)
    wish = Wish(
        max_tokens=request.max_output_tokens,
        grammar=await grammar_of(model, schema, service.limits),
        field="input",
    )
    (answer,) = submit(service, model, request, [prompt], wish)
    reply = ResponseReply(request, answer)
    if request.stream:
        return EventStream(service, [answer], reply.events(), say=reply.failed)
    await unless_gone(http, [answer], service.limits.answer_seconds)
    return JSONResponse(reply.document(answer.text))


def conversation(request: ResponseRequest) -> list[Document]:
    """The input as messages."""
    messages: list[Document] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    for message in request.input:
        content = message.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        role = "system" if message.role == "developer" else message.role
        messages.append({"role": role, "content": text})
    return messages


class ResponseReply:
    """One response, whole or event by event."""

    def __init__(self, request: ResponseRequest, answer: FollowedAnswer) -> None:
        self.request = request
        self.answer = answer
        self.id = f"resp_{secrets.token_hex(12)}"
        self.item_id = f"msg_{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.number = 0

    def document(self, text: str | None, fault: ApiError | None = None) -> Document:
        """The response as it stands; `text` is None while it is written."""
        answer, request = self.answer, self.request
        status, cut = "in_progress", None
        if text is not None:
            status = "completed" if answer.finish == "stop" else "incomplete"
            cut = None if status == "completed" else {"reason": "max_output_tokens"}
        if fault is not None:
            status, cut = "failed", None
        chosen = None if request.text is None else request.text.format
        form = {"type": "text"} if chosen is None else chosen.model_dump(by_alias=True)
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None if fault is None else {"code": "server_error", "message": fault.message},
            "incomplete_details": cut,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": answer.model.facts.name,
            "output": [] if text is None else [self.item(text, status)],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": request.temperature,
            "text": {"format": form},
            "tool_choice": "none",
            "tools": [],
            "top_p": request.top_p,
            "truncation": "disabled",
            "metadata": request.metadata or {},
            "usage": None if text is None else self.usage(),
            "metrics": None if text is None else metrics([answer]),
        }

    def usage(self) -> Document:
        """Tokens in and out."""
        answer = self.answer
        return {
            "input_tokens": answer.prompt_tokens,
            "input_tokens_details": {"cached_tokens": answer.cached_tokens},
            "output_tokens": answer.num_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": answer.prompt_tokens + answer.num_tokens,
            "kv_entries": answer.kv_entries,
        }

    def item(self, text: str | None, status: str) -> Document:
        """The message that is the output."""
        return {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [] if text is None else [part(text)],
        }

    def say(self, kind: str, **fields: object) -> bytes:
        """One event, numbered."""
        self.number += 1
        return event({"type": kind, "sequence_number": self.number - 1, **fields}, kind)

    async def events(self) -> AsyncGenerator[bytes]:
        """The response as events."""
        place = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        yield (
            self.say("response.created", response=self.document(None))
            + self.say("response.in_progress", response=self.document(None))
            + self.say(
                "response.output_item.added", output_index=0, item=self.item(None, "in_progress")
            )
            + self.say("response.content_part.added", **place, part=part(""))
        )
        async for _, several in self.answer.steps():
            text = "".join(news.text for news in several)
            if text:
                yield self.say("response.output_text.delta", **place, delta=text, logprobs=[])
        text = self.answer.text
        whole = self.document(text)
        yield (
            self.say("response.output_text.done", **place, text=text, logprobs=[])
            + self.say("response.content_part.done", **place, part=part(text))
            + self.say(
                "response.output_item.done", output_index=0, item=self.item(text, "completed")
            )
            + self.say(f"response.{whole['status']}", response=whole)
        )

    def failed(self, fault: ApiError) -> bytes:
        """How a response says that it goes no further."""
        return self.say("response.failed", response=self.document(self.answer.text, fault))


def part(text: str) -> Document:
    """A text as a part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
