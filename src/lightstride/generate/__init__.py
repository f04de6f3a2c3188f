"""Answering: an open batch that rows join, step and leave; the plain decoder; what smash shares.

session     the protocol: add, step, cancel     batch_session    the one implementation
decoder     Decoder, PlainDecoder, generate()   modes            what a row asks, and answers
rows        a row, and the cut that ends it     sampling         logits to tokens
turns       whose prompt is read next           prefixes         entries of prompts read before
detokenize  tokens to text as they come         chat_template    messages to tokens
batch/      what one forward of the rows computes
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
