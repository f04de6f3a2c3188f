"""Answering: an open batch that rows join, step and leave; the plain decoder; what smash shares.

session          the protocol: add, step, cancel       batch_session    the one implementation
decoder          Decoder, PlainDecoder, generate()     modes            what a row asks, and answers
forward          one forward of some rows              cache            keys and values by row
rows             a row, and the cut that ends it       sampling         logits to tokens
masks            who sees whom, and where it stands    detokenize, chat_template    text
folded           attention, each KV head read once     packed           weights for the kernel
segments         rows whose attention is one rectangle
"""

from lightstride.config.decoding import Mode, Settings
from lightstride.generate.decoder import Decoder, Generation, PlainDecoder, Step, generate
from lightstride.generate.session import Hooks, Limits, RowStep, Session

__all__ = [
    "Decoder",
    "Generation",
    "Hooks",
    "Limits",
    "Mode",
    "PlainDecoder",
    "RowStep",
    "Session",
    "Settings",
    "Step",
    "generate",
]
