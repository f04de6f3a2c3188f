"""Answering: the protocol that plain, pruned and smashed decoders share, and the plain decoder.

decoder    prompts in, steps out    answer    whole answers from any decoder
forward    one forward of a batch    cache    keys and values, scratch columns at the end
rows    what ends an answer    sampler, sampling   logits to tokens
masks, positions   who sees whom    detokenize, chat_template   text
"""

from lightstride.config.decoding import Mode, Settings
from lightstride.generate.answer import Generation, generate
from lightstride.generate.decoder import Decoder, Hooks, PlainDecoder, Step

__all__ = [
    "Decoder",
    "Generation",
    "Hooks",
    "Mode",
    "PlainDecoder",
    "Settings",
    "Step",
    "generate",
]
