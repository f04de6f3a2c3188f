"""Answering: the protocol that plain, pruned and smashed decoders share, and the plain decoder."""

from lightstride.generate.answer import Generation, generate
from lightstride.generate.decoder import Decoder, Hooks, PlainDecoder, Step
from lightstride.generate.settings import Mode, Settings

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
