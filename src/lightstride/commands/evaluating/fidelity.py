"""The part of `evaluate` that holds a model against the dense one: distributions, answers."""

import importlib
from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.checkpoint import open_decoder
from lightstride.config import EvaluateConfig
from lightstride.data.documents import read_documents
from lightstride.data.prompts import Prompt, read_prompts
from lightstride.data.windows import strided_windows
from lightstride.errors import ConfigError
from lightstride.evaluate.fidelity import fidelity
from lightstride.evaluate.instructions import followed, make_instructions
from lightstride.evaluate.last_words import last_word_accuracy, passages
from lightstride.evaluate.loops import looping_share
from lightstride.generate import Decoder
from lightstride.generate.chat_template import chat_tokens
from lightstride.models.device import pick_device, pick_dtype, suitable_dtype

PASSAGES = 500
"""Passages asked unless --limit says otherwise."""
PROMPTS = 200
"""Prompts answered unless --limit says otherwise."""


def compare(config: EvaluateConfig) -> dict[str, Mapping[str, object]]:
    """Fidelity and last words on --fidelity, loops on --loops, instructions; what was asked for."""
    assert config.against is not None
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, suitable_dtype(device))
    trust = config.trust_remote_code
    ours, dense = (
        open_decoder(source, dtype=dtype, device=device, trust_remote_code=trust, kv=kv)
        for source, kv in ((config.model, config.kv), (config.against, None))
    )
    found: dict[str, Mapping[str, object]] = {}
    if config.fidelity is not None:
        found |= compare_on_text(config, ours, dense)
    if config.loops is not None:
        prompts = read_prompts([config.loops], limit=config.limit or PROMPTS)
        found["loops"] = {
            name: looping_share(each, [tokens_of(each, p) for p in prompts])
            for name, each in zip(("model", "against"), (ours, dense), strict=True)
        }
    if config.instructions is not None:
        asked = make_instructions(config.instructions)
        found["instructions"] = {"model": followed(ours, asked), "against": followed(dense, asked)}
    return found


def compare_on_text(
    config: EvaluateConfig, ours: Decoder, dense: Decoder
) -> dict[str, Mapping[str, object]]:
    """Fidelity and last words of the model, and of the dense one after quantizing."""
    assert config.fidelity is not None
    windows_NL = strided_windows(
        config.fidelity, dense.tokenizer, window=config.window, every=config.every
    ).tokens_NL
    asked = passages(read_documents(config.fidelity), config.limit or PASSAGES)

    def right(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
        return sum(last_word_accuracy(model, tokenizer, asked, config.window)) / len(asked)

    def copy_like(dtype: str) -> dict[str, object]:
        copied = quantized(dense.model, dtype)
        found = asdict(fidelity(copied, dense.model, windows_NL))
        return {**found, "last_words": right(copied, dense.tokenizer)}

    return {
        "fidelity": asdict(fidelity(ours.model, dense.model, windows_NL)),
        "last_words": {
            "model": right(ours.model, ours.tokenizer),
            "against": right(dense.model, dense.tokenizer),
            "passages": len(asked),
        },
        "yardsticks": {dtype: copy_like(dtype) for dtype in config.yardsticks},
    }


def quantized(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """The model after a type of llama.cpp's; ConfigError without the package gguf."""
    if find_spec("gguf") is None:
        raise ConfigError("--yardsticks needs gguf: pip install 'lightstride[gguf]'")
    module = importlib.import_module("lightstride.export.gguf.round_trip")
    found = module.quantized_copy(model, dtype)
    assert isinstance(found, PreTrainedModel)
    return found


def tokens_of(decoder: Decoder, prompt: Prompt) -> list[int]:
    """A prompt by the chat template."""
    return chat_tokens(decoder.tokenizer, [message.as_dict() for message in prompt.messages])


def comparison_text(found: Mapping[str, Mapping[str, object]]) -> str:
    """What was compared, for a person."""
    lines = []
    if "fidelity" in found:
        one, words = found["fidelity"], found["last_words"]
        lines.append(
            f"fidelity: KL {one['mean']:.3f} nats (99%: {one['p99']:.2f}), "
            f"the same likeliest token at {100 * float(str(one['same_likeliest'])):.1f}% of "
            f"{one['num_tokens']:,} positions"
        )
        ours, theirs = (100 * float(str(words[name])) for name in ("model", "against"))
        lines.append(
            f"last words: {ours:.1f}% right, against {theirs:.1f}%, of {words['passages']} passages"
        )
        for name, each in found["yardsticks"].items():
            one = dict(each)  # type: ignore[call-overload]
            lines.append(
                f"the dense model in {name}: KL {one['mean']:.3f} nats (99%: {one['p99']:.2f}), "
                f"{100 * one['same_likeliest']:.1f}%, last words {100 * one['last_words']:.1f}%"
            )
    if "loops" in found:
        ends = {name: dict(each) for name, each in found["loops"].items()}  # type: ignore[call-overload]
        ours, theirs = (100 * ends[name]["loops"] for name in ("model", "against"))
        lines.append(f"loops: {ours:.1f}% of greedy answers, against {theirs:.1f}%")
    if "instructions" in found:
        shares = {name: dict(each) for name, each in found["instructions"].items()}  # type: ignore[call-overload]
        followed_by = (
            f"{100 * shares[name]['followed']:.1f}% ± {100 * shares[name]['error']:.1f}"
            for name in ("model", "against")
        )
        lines.append("instructions: {} followed, against {}".format(*followed_by))
    return "\n".join(lines)
