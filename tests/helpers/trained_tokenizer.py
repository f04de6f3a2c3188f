"""A small tokenizer with merges, as real checkpoints have."""

import string

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import lightstride.errors


def trained_tokenizer(*, digits: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with merges, as .gguf files hold them; digits may be words."""
    tokenizer = Tokenizer(models.BPE())
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes])
        if digits
        else by_bytes
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=250, show_progress=False, initial_alphabet=list(string.digits)
    )
    tokenizer.train_from_iterator([lightstride.errors.__doc__], trainer)
    tokenizer.add_special_tokens(["<bos>", "<eos>", "<pad>", "<unk>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template="{{ messages }}",
    )
