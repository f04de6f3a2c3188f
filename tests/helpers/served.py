"""A server on loopback, in a thread of the test."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from helpers.fake_session import FakeSession
from helpers.toys import BOS, EOS, VOCAB_SIZE, byte_tokenizer
from lightstride.generate.session import Session
from lightstride.serve.api.app import build
from lightstride.serve.api.service import Defaults, Service
from lightstride.serve.engine.model import ServedModel
from lightstride.serve.engine.stepper import Stepper
from lightstride.serve.limits import Limits
from lightstride.serve.run import Server, listen
from lightstride.serve.seam import Facts

TOOLS_TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ 'tools: ' + (tools | tojson) + eos_token }}{% endif %}"
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}"
    "{% if message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{% endif %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@dataclass(frozen=True)
class Served:
    """Where a server of a test listens, and what it serves."""

    url: str
    service: Service
    server: Server


def facts(name: str = "toy", **changes: object) -> Facts:
    values: dict[str, object] = {
        "name": name,
        "created": 1,
        "context": 512,
        "vocab_size": VOCAB_SIZE,
        "modes": ("lossless", "ar", "trust"),
        "default_mode": "lossless",
        "kv_budgets": (1.0,),
        "default_kv": 1.0,
        "has_chat": True,
    }
    return Facts(**{**values, **changes})  # type: ignore[arg-type]


def toy_model(
    name: str = "toy",
    *,
    limits: Limits | None = None,
    session: Callable[[PreTrainedTokenizerBase], Session] = FakeSession,
    tools: bool = False,
    stepper: Stepper | None = None,
    **changes: object,
) -> ServedModel:
    """A model without weights, or with a session of one's own."""
    tokenizer = byte_tokenizer()
    if tools:
        tokenizer.chat_template = TOOLS_TEMPLATE
    assert BOS < EOS
    return ServedModel(
        facts(name, **changes),
        tokenizer,
        [EOS],
        lambda _: session(tokenizer),
        limits or Limits(),
        stepper or Stepper(),
    )


@contextmanager
def served(
    *models: ServedModel,
    limits: Limits | None = None,
    defaults: Defaults | None = None,
    key: str | None = None,
    grace: float = 0.5,
    origins: tuple[str, ...] = (),
) -> Iterator[Served]:
    """A server that is ready, and has ended afterwards."""
    service = Service(
        models={model.facts.name: model for model in models},
        limits=limits or Limits(),
        defaults=defaults or Defaults(max_tokens=64),
    )
    ready = threading.Event()
    app = build(service, key=key, hosts={"127.0.0.1", "localhost"}, origins=origins)
    server = Server(app, service, grace=grace, on_ready=ready.set)
    with listen("127.0.0.1", 0) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            assert ready.wait(10)
            yield Served(f"http://127.0.0.1:{bound.getsockname()[1]}", service, server)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
