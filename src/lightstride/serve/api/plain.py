"""The small routes: models, tokens, health, meters, the page."""

from starlette.responses import JSONResponse, Response

from lightstride import __version__
from lightstride.serve.api.chat import Document, as_template_reads
from lightstride.serve.api.service import Service
from lightstride.serve.faults import bad
from lightstride.serve.schemas.tokens import DetokenizeRequest, TokenizeRequest
from lightstride.serve.seam import Facts


def listed(facts: Facts) -> Document:
    """A model as `/v1/models` lists it, and what only this server's clients read."""
    return {
        "id": facts.name,
        "object": "model",
        "created": facts.created,
        "owned_by": "lightstride",
        "max_model_len": facts.context,
        "lightstride": {
            "modes": list(facts.modes),
            "default_mode": facts.default_mode,
            "kv": list(facts.kv_budgets),
            "default_kv": facts.default_kv,
            "has_chat": facts.has_chat,
        },
    }


def models(service: Service) -> Document:
    """All models."""
    return {"object": "list", "data": [listed(m.facts) for m in service.models.values()]}


async def tokenize(service: Service, request: TokenizeRequest) -> Document:
    """Tokens of a text or a conversation."""
    model = service.model(request.model)
    if request.messages is not None:
        tokens = await model.chat(as_template_reads(request.messages), None)
    else:
        tokens = await model.tokenize(request.prompt or "", special=request.add_special_tokens)
    return {"tokens": list(tokens), "count": len(tokens), "max_model_len": model.facts.context}


async def detokenize(service: Service, request: DetokenizeRequest) -> Document:
    """Text of tokens."""
    model = service.model(request.model)
    if max(request.tokens, default=0) >= model.facts.vocab_size:
        raise bad(f"tokens are numbers from 0 to {model.facts.vocab_size - 1}", "tokens")
    return {"prompt": await model.detokenize(request.tokens)}


def ready(service: Service) -> Response:
    """Whether requests are taken."""
    service.open()
    return JSONResponse({"status": "ready"})


def slots(service: Service) -> Document:
    """How busy each model is."""
    return {
        name: {
            "running": model.load.running,
            "waiting": model.load.waiting,
            "free_kv_entries": model.load.free_entries,
        }
        for name, model in service.models.items()
    }


def meters(service: Service) -> Response:
    """All meters, as Prometheus reads them."""
    loads = {name: model.load for name, model in service.models.items()}
    page = service.meters.page(loads)
    return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")


def version() -> Document:
    """This package's version."""
    return {"version": __version__}
