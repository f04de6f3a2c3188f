"""What `lightstride generate` does: answer one prompt, streamed, and print what it cost."""

import itertools
import os
import sys
from collections.abc import Callable, Mapping

from transformers import PreTrainedTokenizerBase

from lightstride.checkpoint import base_of, open_decoder
from lightstride.config import GenerateConfig
from lightstride.config.decoding import Settings
from lightstride.errors import ConfigError, DataError
from lightstride.files.read import as_text
from lightstride.generate.chat_template import chat_tokens, token_ids
from lightstride.generate.decoder import Generation, Step
from lightstride.generate.decoder import generate as answer
from lightstride.models.device import pick_device, pick_dtype, suitable_dtype
from lightstride.smash.decode.costs import costs_of

COLORS = (36, 33, 35, 32)
"""Terminal colors that neighboring steps take in turn."""


def generate(config: GenerateConfig) -> Mapping[str, object]:
    """Print the answer as it comes; the answer and its cost, as printed by `--json`."""
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, suitable_dtype(device))
    settings = Settings.of(config)
    prompt = typed() if config.prompt == "-" else config.prompt
    if not prompt:
        raise ConfigError("the prompt on standard input is empty; it needs at least one character")
    decoder = open_decoder(
        config.model,
        dtype=dtype,
        device=device,
        trust_remote_code=config.trust_remote_code,
        kv=config.kv,
        kv_type=config.kv_dtype,
    )
    tokens = encode(decoder.tokenizer, prompt, system=config.system, raw=config.raw)
    show = None if config.json else step_printer(config.show_steps)
    (result,) = answer(decoder, [tokens], settings, on_step=show)
    if not config.json:
        sys.stdout.write("\n")
        sys.stderr.write(cost_line(result) + "\n")
        if config.show_steps:
            sys.stderr.write("\n".join(costs_of(base_of(decoder)).lines()) + "\n")
    return as_json(result)


def typed() -> str:
    """All of standard input; DataError where it is not UTF-8 text."""
    return as_text(sys.stdin.buffer.read(), "the prompt on standard input", DataError)


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, *, system: str | None, raw: bool
) -> list[int]:
    """Tokens of the prompt: a chat's, where the tokenizer has a template, or the text's own."""
    if raw or not tokenizer.chat_template:
        if system is not None:
            raise ConfigError("--system was given, but this model has no chat template")
        return token_ids(tokenizer, prompt, special=True)
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return chat_tokens(tokenizer, messages)


def step_printer(show_steps: bool) -> Callable[[Step], None]:
    """A function that prints the text of each step, in colors if steps are to be told apart."""
    turn = itertools.cycle(COLORS)
    plain = bool(os.environ.get("NO_COLOR"))

    def show(step: Step) -> None:
        text = step.text[0]
        if show_steps and text:
            text = f"[{text}]" if plain else f"\x1b[{next(turn)}m{text}\x1b[0m"
        sys.stdout.write(text)
        sys.stdout.flush()

    return show


def cost_line(result: Generation) -> str:
    """One line on what the answer cost."""
    return (
        f"{len(result.tokens)} tokens in {result.macro_steps} macro steps "
        f"({result.tokens_per_step:.2f} tokens per step) · {result.kv_entries} KV entries, "
        f"{result.kv_bytes / 1024:.0f} KiB · {result.tokens_per_second:.1f} tokens/s"
    )


def as_json(result: Generation) -> dict[str, object]:
    """The answer and its cost, ready for JSON."""
    return {
        "text": result.text,
        "tokens": len(result.tokens),
        "macro_steps": result.macro_steps,
        "tokens_per_step": result.tokens_per_step,
        "kv_entries": result.kv_entries,
        "kv_bytes": result.kv_bytes,
        "tokens_per_second": result.tokens_per_second,
        "seconds": result.seconds,
        "prompt_tokens": result.prompt_tokens,
        "finish_reason": result.finish_reason,
        "near_ties": result.near_ties,
        "steps": [list(step) for step in result.steps],
    }
