"""A tokenizer of whole characters: llama.cpp reports the probabilities of no others."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import lightstride.errors
import lightstride.models.shapes

TEXT = (lightstride.errors.__doc__ or "") + (lightstride.models.shapes.__doc__ or "")


def ascii_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with 256 tokens of ASCII characters and two special ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ascii_text = "".join(letter for letter in TEXT if letter.isascii())
    trainer = trainers.BpeTrainer(vocab_size=256, show_progress=False)
    tokenizer.train_from_iterator([ascii_text], trainer)
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", chat_template="{{ x }}"
    )
