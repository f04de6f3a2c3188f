"""The part of `evaluate` that holds a model against the dense one: distributions, answers."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec

from torch import Tensor
from transformers import PreTrainedModel

from lightstride.checkpoint import open_decoder
from lightstride.commands.evaluating.streamed import blockwise, open_blocks
from lightstride.config import EvaluateConfig
from lightstride.data.documents import read_documents
from lightstride.data.prompts import Prompt, read_prompts
from lightstride.data.windows import strided_windows
from lightstride.errors import ConfigError
from lightstride.evaluate.block_reader import BlockReader, weights_of
from lightstride.evaluate.fidelity import fidelity
from lightstride.evaluate.instructions import followed, make_instructions
from lightstride.evaluate.last_words import last_word_accuracy, passages
from lightstride.evaluate.loops import looping_share
from lightstride.generate import Decoder, PlainDecoder
from lightstride.generate.chat_template import chat_tokens
from lightstride.models.device import pick_device, pick_dtype, suitable_dtype

PASSAGES = 500
"""Passages asked unless --limit says otherwise."""
PROMPTS = 200
"""Prompts answered unless --limit says otherwise."""


def compare(config: EvaluateConfig) -> dict[str, Mapping[str, object]]:
    """Fidelity and last words on --fidelity, loops on --loops, instructions; what was asked for."""
    assert config.against is not None
    how = blockwise([config.model, config.against], config)
    if how is not None:
        ours, dense = (
            open_blocks(source, how, config, name)
            for source, name in (
                (config.model, "activations"),
                (config.against, "activations-against"),
            )
        )
        return compare_on_text(config, ours, dense) | {"yardsticks": {}}
    found: dict[str, Mapping[str, object]] = {}
    whole, against = (
        open_whole(source, config, kv)
        for source, kv in ((config.model, config.kv), (config.against, None))
    )
    if config.fidelity is not None:
        found |= compare_on_text(config, whole, against)
        found["yardsticks"] = yardsticks(config, against)
    if config.loops is not None:
        prompts = read_prompts([config.loops], limit=config.limit or PROMPTS)
        found["loops"] = {
            name: looping_share(each, [tokens_of(each, p) for p in prompts])
            for name, each in zip(("model", "against"), (whole, against), strict=True)
        }
    if config.instructions is not None:
        asked = make_instructions(config.instructions)
        found["instructions"] = {
            "model": followed(whole, asked),
            "against": followed(against, asked),
        }
    return found


def open_whole(source: str, config: EvaluateConfig, kv: float | None = None) -> Decoder:
    """A model in memory."""
    device = pick_device(config.device)
    return open_decoder(
        source,
        dtype=pick_dtype(config.dtype, suitable_dtype(device)),
        device=device,
        trust_remote_code=config.trust_remote_code,
        kv=kv,
    )


def compare_on_text(
    config: EvaluateConfig, ours: Decoder | BlockReader, dense: Decoder | BlockReader
) -> dict[str, Mapping[str, object]]:
    """Fidelity of the model, and last words of both."""
    asked = passages_of(config)
    (model, spill), (other, other_spill) = weights_of(ours), weights_of(dense)
    windows_NL = windows_of(config, dense)
    return {
        "fidelity": asdict(fidelity(model, other, windows_NL, (spill, other_spill))),
        "last_words": {
            "model": share_right(config, ours, asked),
            "against": share_right(config, dense, asked),
            "passages": len(asked),
        },
    }


def windows_of(config: EvaluateConfig, dense: Decoder | BlockReader) -> Tensor:
    """The text of --fidelity in the dense model's tokens."""
    assert config.fidelity is not None
    found = strided_windows(
        config.fidelity, dense.tokenizer, window=config.window, every=config.every
    )
    return found.tokens_NL


def passages_of(config: EvaluateConfig) -> list[tuple[str, str]]:
    """Passages of the text of --fidelity, with their last words."""
    assert config.fidelity is not None
    return passages(read_documents(config.fidelity), config.limit or PASSAGES)


def share_right(
    config: EvaluateConfig, reader: Decoder | BlockReader, asked: Sequence[tuple[str, str]]
) -> float:
    """The share of passages whose last word a model says."""
    return sum(last_word_accuracy(reader, asked, config.window)) / len(asked)


def yardsticks(config: EvaluateConfig, dense: Decoder) -> dict[str, object]:
    """Fidelity and last words of the dense model after quantizing, by type."""

    def copy_like(dtype: str) -> dict[str, object]:
        copied = PlainDecoder(quantized(dense.model, dtype), dense.tokenizer)
        found = fidelity(copied.model, dense.model, windows_of(config, dense))
        return {**asdict(found), "last_words": share_right(config, copied, passages_of(config))}

    return {dtype: copy_like(dtype) for dtype in config.yardsticks}


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
