"""From a request to the answers that are asked for: everything checked, everything decided."""

import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from lightstride.serve.api.follow import FollowedAnswer
from lightstride.serve.api.metrics import Clock
from lightstride.serve.api.service import Defaults, Service
from lightstride.serve.faults import bad
from lightstride.serve.limits import Limits
from lightstride.serve.schemas.base import Sampling, Writing
from lightstride.serve.seam import Ask, Facts, Mode, Model

LOG = logging.getLogger("lightstride.serve")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the routes know and the request's common fields do not say."""

    max_tokens: int | None
    count: int = 1
    """Answers for every prompt."""
    top_logprobs: int | None = None
    grammar: str | None = None
    field: str = "prompt"
    """The request's field that became the prompt."""


def submit(
    service: Service,
    model: Model,
    request: Sampling,
    prompts: Sequence[Sequence[int]],
    wish: Wish,
) -> list[FollowedAnswer]:
    """Queue the answers of a request, prompt by prompt; ApiError where one cannot be.

    What comes back has to be followed to its end or released, so that the rows are free again.
    """
    service.open()
    facts = model.facts
    check(request, facts, service.limits, len(prompts) * wish.count, wish)
    check_exact(request, facts, service.defaults)
    for prompt in prompts:
        check_prompt(prompt, facts, wish.field)
    if service.log_text:
        LOG.info("asked: %s", request.model_dump_json(exclude_none=True))
    seed = secrets.randbits(48) if request.seed is None else request.seed
    asks = [
        ask_for(request, prompt, facts, service.defaults, wish, seed + choice)
        for prompt in prompts
        for choice in range(wish.count)
    ]
    tickets = model.submit(asks)
    answers = []
    for index, (ask, ticket) in enumerate(zip(asks, tickets, strict=True)):
        clock = Clock(service.meters, facts.name, len(ask.prompt))
        answers.append(FollowedAnswer(index, model, ticket, len(ask.prompt), clock))
    return answers


def check(request: Sampling, facts: Facts, limits: Limits, total: int, wish: Wish) -> None:
    """ApiError where the request asks for more than is allowed, or for what the model has not."""
    if total > limits.choices:
        raise bad(f"{total} answers are asked for; at most {limits.choices}", "n")
    if wish.top_logprobs is not None and wish.top_logprobs > limits.top_logprobs:
        raise bad(f"at most {limits.top_logprobs} alternatives are reported", "top_logprobs")
    if request.mode is not None and request.mode not in facts.modes:
        raise bad(f"{facts.name} has the modes {', '.join(facts.modes)}", "mode")
    mode = request.mode or facts.default_mode
    if mode == "trust" and wish.top_logprobs is not None:
        raise bad("in the mode trust the base does not score every token", "logprobs")
    if request.confidence is not None and facts.modes == ("ar",):
        raise bad(f"{facts.name} says one token a step, whatever its confidence", "confidence")
    if request.kv is not None and request.kv not in facts.kv_budgets:
        known = ", ".join(f"{budget:g}" for budget in facts.kv_budgets)
        raise bad(f"{facts.name} can keep these shares of its KV entries: {known}", "kv")
    if wish.grammar is not None and request.ignore_eos:
        raise bad("an answer of a given format ends where the format does", "ignore_eos")
    if isinstance(request, Writing):
        check_stops(stop_strings(request), limits)
        read_biases(request, facts, limits)


def check_exact(request: Sampling, facts: Facts, defaults: Defaults) -> None:
    """ApiError where an answer would be exact whose mode believes drafts."""
    mode = mode_of(request, facts, defaults) or facts.default_mode
    if is_exact(request, defaults) and mode not in ("lossless", "ar"):
        raise bad(f"exact is for the modes lossless and ar, and this answer is in {mode}", "exact")


def mode_of(request: Sampling, facts: Facts, defaults: Defaults) -> Mode | None:
    """The mode of an answer; None is the model's own."""
    return request.mode or (defaults.mode if defaults.mode in facts.modes else None)


def is_exact(request: Sampling, defaults: Defaults) -> bool:
    """Whether an answer is to be exact."""
    return defaults.exact if request.exact is None else request.exact


def check_stops(stop: Sequence[str], limits: Limits) -> None:
    """ApiError where there are too many stop strings, or one is too long."""
    if len(stop) > limits.stop_strings:
        raise bad(f"at most {limits.stop_strings} stop strings", "stop")
    if any(len(text) > limits.stop_characters for text in stop):
        raise bad(f"a stop string has at most {limits.stop_characters} characters", "stop")


def check_prompt(prompt: Sequence[int], facts: Facts, field: str) -> None:
    """ApiError where a prompt has no place in the context, or tokens that are none."""
    if not prompt:
        raise bad("the prompt is empty; it needs at least one token", field)
    if len(prompt) >= facts.context:
        raise bad(
            f"the prompt has {len(prompt):,} tokens; the context of {facts.name} is "
            f"{facts.context:,}, so a prompt may have at most {facts.context - 1:,}",
            field,
            "context_length_exceeded",
        )
    if max(prompt) >= facts.vocab_size:
        raise bad(f"tokens are numbers from 0 to {facts.vocab_size - 1}", field)


def stop_strings(request: Writing) -> tuple[str, ...]:
    """What ends the answer."""
    if request.stop is None:
        return ()
    return (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)


def read_biases(request: Writing, facts: Facts, limits: Limits) -> tuple[tuple[int, float], ...]:
    """Tokens and what is added to their logits; ApiError where one is no token of the model."""
    if not request.logit_bias:
        return ()
    if len(request.logit_bias) > limits.biases:
        raise bad(f"at most {limits.biases} tokens can have a bias", "logit_bias")
    biases = []
    for name, bias in request.logit_bias.items():
        if not (name.isascii() and name.isdecimal() and int(name[:9]) < facts.vocab_size):
            raise bad(f"tokens are numbers from 0 to {facts.vocab_size - 1}", "logit_bias")
        biases.append((int(name[:9]), float(bias)))
    return tuple(biases)


def ask_for(
    request: Sampling,
    prompt: Sequence[int],
    facts: Facts,
    defaults: Defaults,
    wish: Wish,
    seed: int,
) -> Ask:
    """One answer, with the server's defaults for what the request leaves out."""
    most = defaults.max_tokens if wish.max_tokens is None else wish.max_tokens
    extra: dict[str, float] = {}
    stop: tuple[str, ...] = ()
    biases: tuple[tuple[int, float], ...] = ()
    if isinstance(request, Writing):
        stop = stop_strings(request)
        biases = tuple((int(name), float(b)) for name, b in (request.logit_bias or {}).items())
        extra["presence_penalty"] = float(request.presence_penalty or 0)
        extra["frequency_penalty"] = float(request.frequency_penalty or 0)
    return Ask(
        prompt=tuple(prompt),
        max_tokens=min(most, facts.context - len(prompt)),
        temperature=float(either(request.temperature, defaults.temperature)),
        top_p=float(either(request.top_p, defaults.top_p)),
        top_k=max(0, int(either(request.top_k, defaults.top_k))),
        min_p=float(either(request.min_p, defaults.min_p)),
        repetition_penalty=float(either(request.repetition_penalty, defaults.repetition_penalty)),
        logit_bias=biases,
        seed=seed,
        stop=stop,
        ignore_end_tokens=request.ignore_eos,
        top_logprobs=wish.top_logprobs,
        grammar=wish.grammar,
        mode=mode_of(request, facts, defaults),
        exact=is_exact(request, defaults),
        confidence=request.confidence or defaults.confidence,
        kv=float(either(request.kv, facts.default_kv)),
        **extra,
    )


def either(given: float | None, default: float) -> float:
    """What was given, or the default."""
    return default if given is None else given


async def alternatives(model: Model, wanted: int | None) -> int | None:
    """How many alternatives are wanted, once the model can name them."""
    if wanted is not None:
        await model.know_pieces()
    return wanted


async def grammar_of(
    model: Model, schema: Mapping[str, JsonValue] | None, limits: Limits
) -> str | None:
    """The grammar of a schema; ApiError where it is too large or cannot be compiled."""
    if schema is None:
        return None
    text = json.dumps(schema, sort_keys=True)
    if len(text) > limits.schema_bytes:
        raise bad(f"a schema has at most {limits.schema_bytes:,} bytes", "response_format")
    return await model.compile(text)
