"""The application: routes, guards and errors put together."""

import logging
from collections.abc import Collection, Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from lightstride import __version__
from lightstride.serve.api import plain
from lightstride.serve.api.chat import Document, chat
from lightstride.serve.api.completions import complete
from lightstride.serve.api.guard import Guard
from lightstride.serve.api.page import page_response
from lightstride.serve.api.responses import respond
from lightstride.serve.api.service import Service
from lightstride.serve.faults import ApiError, bad, internal
from lightstride.serve.schemas.chat import ChatRequest
from lightstride.serve.schemas.completions import CompletionRequest
from lightstride.serve.schemas.responses import ResponseRequest
from lightstride.serve.schemas.tokens import DetokenizeRequest, TokenizeRequest

LOG = logging.getLogger("lightstride.serve")
ERROR_SCHEMA: Document = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ERRORS: dict[int | str, dict[str, object]] = {
    status: {"description": text, "content": {"application/json": {"schema": ERROR_SCHEMA}}}
    for status, text in (
        (400, "Not a request of this shape, or it asks for what cannot be."),
        (401, "No key, or a wrong one."),
        (403, "Under this host name nothing is served."),
        (404, "No such model."),
        (408, "It took too long."),
        (413, "The body is too large."),
        (429, "The queue is full; come back later."),
        (503, "The server is shutting down."),
    )
}


def build(
    service: Service,
    *,
    key: str | None = None,
    hosts: Collection[str] | None = None,
    origins: Sequence[str] = (),
) -> ASGIApp:
    """The application; `hosts` are the names it answers to, `origins` whose pages may ask."""
    app = FastAPI(
        title="Lightstride", version=__version__, docs_url=None, redoc_url=None, responses=ERRORS
    )
    add_errors(app, service)
    add_writing(app, service)
    add_reading(app, service)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    return Guard(app, limits=service.limits, key=key, hosts=hosts)


def add_writing(app: FastAPI, service: Service) -> None:
    """The routes that let a model write."""

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(request: ChatRequest, http: Request) -> Response:
        """Answer a conversation."""
        return await chat(service, request, http)

    @app.post("/v1/completions", response_model=None)
    async def completions(request: CompletionRequest, http: Request) -> Response:
        """Go on with a text."""
        return await complete(service, request, http)

    @app.post("/v1/responses", response_model=None)
    async def responses(request: ResponseRequest, http: Request) -> Response:
        """Answer a conversation, in the newer shape."""
        return await respond(service, request, http)


def add_reading(app: FastAPI, service: Service) -> None:
    """The routes that only tell."""

    @app.get("/v1/models")
    async def models() -> Document:
        """The models that are served."""
        return plain.models(service)

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Document:
        """One of them."""
        return plain.listed(service.model(name).facts)

    @app.post("/tokenize")
    async def tokenize(request: TokenizeRequest) -> Document:
        """Tokens of a text or a conversation."""
        return await plain.tokenize(service, request)

    @app.post("/detokenize")
    async def detokenize(request: DetokenizeRequest) -> Document:
        """Text of tokens."""
        return await plain.detokenize(service, request)

    @app.get("/health")
    async def health() -> Document:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get("/ready", response_model=None)
    async def ready() -> Response:
        """Whether requests are taken."""
        return plain.ready(service)

    @app.get("/version")
    async def version() -> Document:
        """The version of this server."""
        return plain.version()

    @app.get("/slots")
    async def slots() -> Document:
        """How busy each model is."""
        return plain.slots(service)

    @app.get("/metrics", response_model=None)
    async def meters() -> Response:
        """All meters, for Prometheus."""
        return plain.meters(service)

    @app.get("/", response_model=None, include_in_schema=False)
    async def page() -> Response:
        """The chat in the browser."""
        return page_response()


def add_errors(app: FastAPI, service: Service) -> None:
    """Every error in OpenAI's shape."""

    def answer(fault: ApiError) -> Response:
        service.meters.note_fault(fault)
        return JSONResponse(fault.body, fault.status, headers=fault.headers)

    @app.exception_handler(ApiError)
    async def on_fault(_: Request, fault: ApiError) -> Response:
        return answer(fault)

    @app.exception_handler(RequestValidationError)
    async def on_wrong_shape(_: Request, error: RequestValidationError) -> Response:
        return answer(wrong_shape(error))

    @app.exception_handler(HTTPException)
    async def on_http(_: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, ApiError):
            return answer(error.__cause__)
        response = answer(ApiError(error.status_code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def on_anything(_: Request, error: Exception) -> Response:
        LOG.error("a request failed", exc_info=error)
        return answer(internal())


def wrong_shape(error: RequestValidationError) -> ApiError:
    """What is wrong first, with the name of the field and never its value."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    kind = str(first["type"])
    if kind == "json_invalid":
        return bad("the body is not JSON")
    name = ".".join(place)[:200] or None
    if kind == "extra_forbidden":
        return bad(f"unknown field: {name}", name, "unknown_parameter")
    if kind == "missing":
        return bad(f"missing field: {name}" if name else "the body is empty", name)
    message = str(first["msg"]).removeprefix("Value error, ")
    return bad(f"{name}: {message}" if name else message, name)
