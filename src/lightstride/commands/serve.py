"""What `lightstride serve` does: open models, listen, answer until a signal comes."""

import logging
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import cast

from lightstride import lean  # first: what comes next would import more
from lightstride.checkpoint import base_of, open_decoder, with_budget
from lightstride.config.decoding import Settings
from lightstride.config.serve import ServeConfig
from lightstride.config.values import parse_size
from lightstride.errors import ConfigError
from lightstride.generate import Mode
from lightstride.generate.decoder import Decoder
from lightstride.generate.rows import context_length, ends_of
from lightstride.generate.session import Limits as SessionLimits
from lightstride.memory.plan_files import read_plans
from lightstride.models.device import pick_device, pick_dtype, suitable_dtype
from lightstride.models.opening.load import locate
from lightstride.serve.api.app import build
from lightstride.serve.api.guard import LOOPBACK_NAMES
from lightstride.serve.api.service import Defaults, Service
from lightstride.serve.engine.model import ServedModel
from lightstride.serve.engine.stepper import Stepper
from lightstride.serve.limits import Limits
from lightstride.serve.run import Server, listen
from lightstride.serve.seam import Facts
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.decode.headed import HeadedDecoder
from lightstride.smash.drafters.shared import SharedAnswers

CONTEXT = 4096
"""Context of a model whose config does not say."""
LONG_CHUNK = 256
"""Most tokens of a prompt read in a step while nobody else is there; whoever comes interrupts it.
A prompt of 4,000 tokens costs as much processor time in pieces of 512, 1,024 and 4,000, and a third
more in pieces of 48."""


def serve(config: ServeConfig) -> Mapping[str, object]:
    """Serve until a signal comes; where it was and what, as printed by `--json`."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="lightstride: %(message)s")
    begin = time.perf_counter()
    limits = Limits(rows=config.rows, queue=config.queue, answer_seconds=config.timeout)
    stepper = Stepper()
    with closing(listen(config.host, config.port)) as bound:
        port = bound.getsockname()[1]
        host = f"[{config.host}]" if ":" in config.host else config.host
        # Opened in a thread that ends: OpenMP keeps a pool for every thread that has computed, and
        # where pools have more threads than there are cores they sleep between products.
        with lean.without_compiler(), ThreadPoolExecutor(1) as opener:
            models = opener.submit(open_models, config, limits, stepper).result()
        service = Service(
            models=models,
            limits=limits,
            defaults=Defaults(
                max_tokens=config.max_new_tokens,
                temperature=config.temperature,
                mode=config.mode,
                exact=config.exact,
            ),
            log_text=config.log_text,
        )

        def say_ready() -> None:
            sys.stderr.write(
                f"lightstride: serving {', '.join(service.models)} on http://{host}:{port} "
                f"(ready after {time.perf_counter() - begin:.1f} s; Ctrl+C ends it)\n"
            )
            sys.stderr.flush()
            for model in models.values():
                model.warm_up()

        hosts = {*LOOPBACK_NAMES, config.host.lower()} if config.is_local else None
        # FastAPI asks of every type whether it is one of pydantic's old models: none is here, and
        # to import them takes a third of a second.
        sys.modules.setdefault("pydantic.v1", cast("ModuleType", None))
        app = build(service, key=config.key, hosts=hosts, origins=config.cors)
        Server(app, service, grace=config.grace, on_ready=say_ready).run(sockets=[bound])
        stepper.join()
    return {"models": list(service.models), "host": config.host, "port": port}


def open_models(config: ServeConfig, limits: Limits, stepper: Stepper) -> dict[str, ServedModel]:
    """The models by their names; whatever was opened is closed again where one cannot be."""
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, suitable_dtype(device))
    models: dict[str, ServedModel] = {}
    try:
        for source in config.models:
            decoder = open_decoder(
                source,
                dtype=dtype,
                device=device,
                trust_remote_code=config.trust_remote_code,
                kv=1.0,
            )
            name = name_of(source)
            if name in models:
                raise ConfigError(f"two models have the name {name}; rename a folder")
            models[name] = served(name, source, decoder, config, limits, stepper)
        modes = {mode for model in models.values() for mode in model.facts.modes}
        budgets = {budget for model in models.values() for budget in model.facts.kv_budgets}
        if config.kv is not None and config.kv not in budgets:
            raise ConfigError(f"--kv {config.kv:g}: no served model has a memory plan for it")
        if config.mode is not None and config.mode not in modes:
            raise ConfigError(f"--mode {config.mode}: no served model has it")
        if config.shared_lookups is not None and "lossless" not in modes:
            raise ConfigError("--shared-lookups: no served model has the mode lossless")
    except BaseException:
        for model in models.values():
            model.close()
        stepper.join()
        raise
    return models


def name_of(source: str) -> str:
    """What clients call a model: a folder's or file's own name, anything else as it was given."""
    path = Path(source)
    return path.resolve().name if path.exists() else source


def by_budget(
    source: str, decoder: Decoder, config: ServeConfig
) -> tuple[dict[float, Decoder], float]:
    """A decoder for each of the model's memory plans and the full cache, and the default budget."""
    file = read_plans(Path(locate(source)))
    budgets = (1.0,) if file is None else file.budgets
    default = 1.0 if file is None or file.default is None else file.default
    decoders = {each: with_budget(decoder, source, each, config.kv_dtype) for each in budgets}
    return decoders, config.kv if config.kv in decoders else default


def served(
    name: str,
    source: str,
    decoder: Decoder,
    config: ServeConfig,
    limits: Limits,
    stepper: Stepper,
) -> ServedModel:
    """A decoder with its engine."""
    modes: tuple[Mode, ...] = ("ar",)
    default: Mode = "ar"
    shared = None
    if config.shared_lookups and isinstance(decoder, SmashDecoder | HeadedDecoder):
        shared = SharedAnswers(parse_size("--shared-lookups", config.shared_lookups))
        decoder.shared = shared
    if isinstance(decoder, SmashDecoder):
        modes, default = decoder.model.config.modes, decoder.model.config.mode
    if isinstance(decoder, HeadedDecoder):
        modes = ("lossless", "ar")
        default = "lossless"
    base = base_of(decoder)
    decoders, default_kv = by_budget(source, decoder, config)
    facts = Facts(
        name=name,
        created=int(time.time()),
        context=context_length(base) or CONTEXT,
        vocab_size=base.config.vocab_size,
        modes=modes,
        default_mode=default,
        kv_budgets=tuple(decoders),
        default_kv=default_kv,
        has_chat=bool(decoder.tokenizer.chat_template),
    )
    bounds = SessionLimits(
        entries=config.kv_entries,
        chunk=config.chunk,
        long_chunk=max(config.chunk, LONG_CHUNK),
        keeps_prefixes=not config.no_prefix_cache,
    )
    if config.exact:
        asked = Settings(mode=config.mode if config.mode in modes else None, exact=True)
        decoders[default_kv].session().add((0,), asked, "asked")
    return ServedModel(
        facts,
        decoder.tokenizer,
        sorted(ends_of(base, decoder.tokenizer)),
        lambda budget: decoders[budget].session(bounds),
        limits,
        stepper,
        lambda: (0, 0) if shared is None else (shared.num_bytes, shared.num_tokens),
    )
