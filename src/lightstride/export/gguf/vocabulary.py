"""A tokenizer as llama.cpp wants it: tokens, their types, merges or scores, special tokens.

llama.cpp has two tokenizers for these families.  `gpt2` merges pairs by rank after cutting the
text with a regular expression that it knows by name; the expression in the tokenizer's own file
is looked up here.  `llama` (SentencePiece) merges the pair whose result scores best; the scores
are the ranks of the merges, negated.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from lightstride.errors import ExportError
from lightstride.export.gguf.rope import Metadata

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS: Mapping[tuple[str, ...], str] = MappingProxyType(
    {
        (): "gpt-2",
        (GPT2_WORDS,): "gpt-2",
        ("digits", GPT2_WORDS): "smollm",
        (WORDS % r"\p{N}{1,3}",): "llama-bpe",
        (WORDS % r"\p{N}",): "qwen2",
        (TEKKEN_WORDS,): "tekken",
    }
)
"""The expressions that cut a text, in order, to llama.cpp's name for them."""


class TokenType(IntEnum):
    """llama.cpp's kinds of tokens."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A GGUF's keys about a tokenizer."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    """For the model `llama` only."""
    merges: list[str]
    """For the model `gpt2` only."""
    special: Metadata
    chat_templates: Mapping[str, str]

    def metadata(self) -> Metadata:
        """All keys of the tokenizer."""
        keys: Metadata = {
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": self.types,
            **self.special,
        }
        if self.model == "llama":
            keys["tokenizer.ggml.scores"] = self.scores
        else:  # the key must be there; no text has two unused tokens side by side
            keys["tokenizer.ggml.merges"] = self.merges or ["[UNUSED] [UNUSED]"]
        for name, template in self.chat_templates.items():
            suffix = "" if name == "default" else f".{name}"
            keys[f"tokenizer.chat_template{suffix}"] = template
        return keys


def read_vocabulary(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, end_tokens: Sequence[int]
) -> Vocabulary:
    """Everything llama.cpp needs to tokenize as `tokenizer` does; ExportError if it cannot."""
    if not tokenizer.is_fast:
        raise ExportError(f"{type(tokenizer).__name__} has no tokenizer.json to read")
    document: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = document["model"]
    if model["type"] != "BPE":
        raise ExportError(f"a GGUF here takes tokenizers of type BPE, not {model['type']}")
    sentencepiece = bool(model.get("byte_fallback"))
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    tokens, types = token_table(document, config.vocab_size, tokenizer.unk_token)
    return Vocabulary(
        model="llama" if sentencepiece else "gpt2",
        pre="default" if sentencepiece else pattern_name(document, bool(merges)),
        tokens=tokens,
        types=types,
        scores=merge_scores(tokens, merges) if sentencepiece else [],
        merges=[] if sentencepiece else [" ".join(pair) for pair in merges],
        special=special_tokens(tokenizer, document, end_tokens, len(tokens), sentencepiece),
        chat_templates=templates(tokenizer),
    )


def token_table(
    document: Mapping[str, Any], vocab_size: int, unknown: str | None
) -> tuple[list[str], list[int]]:
    """Every id's text and type; ids that no token has are filled up."""
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    fallback = bool(document["model"].get("byte_fallback"))
    for text, index in document["model"]["vocab"].items():
        check_fits(index, text, vocab_size)
        is_byte = fallback and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        tokens[index], types[index] = text, TokenType.BYTE if is_byte else TokenType.NORMAL
    for added in document["added_tokens"]:
        index, text = added["id"], added["content"]
        check_fits(index, text, vocab_size)
        special = added["special"] or looks_special(text)
        tokens[index] = text
        types[index] = TokenType.CONTROL if special else TokenType.USER_DEFINED
        if fallback and text == unknown:
            types[index] = TokenType.UNKNOWN
    return tokens, types


def check_fits(index: int, text: str, vocab_size: int) -> None:
    """Raise ExportError for a token that the model's embedding has no row for."""
    if index >= vocab_size:
        raise ExportError(f"token {text!r} is number {index}, the model has {vocab_size} rows")


def looks_special(text: str) -> bool:
    """Whether a token steers a chat although its tokenizer does not say so."""
    return text in ("<pad>", "<mask>") or (
        text.startswith(("<|", "<unused")) and text.endswith(("|>", ">"))
    )


def merge_scores(tokens: Sequence[str], merges: Sequence[Sequence[str]]) -> list[float]:
    """Each token's score: minus the rank of the first merge that makes it, else the lowest."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def pattern_name(document: Mapping[str, Any], has_merges: bool) -> str:
    """llama.cpp's name for the way a text is cut into words; ExportError if it has none."""
    patterns = split_patterns(document.get("pre_tokenizer"))
    name = PATTERNS.get(patterns) if has_merges else "gpt-2"
    if name is None or (has_merges and not patterns):
        raise ExportError(
            "llama.cpp does not know how this tokenizer cuts words: "
            f"{json.dumps(document.get('pre_tokenizer'))}"
        )
    if name == "llama-bpe" and not document["model"].get("ignore_merges"):
        return "dbrx"  # the same words, and merges are never skipped
    return name


def split_patterns(step: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The expressions of a pre-tokenizer, in order; what it cannot say is given by type."""
    if step is None:
        return ()
    kind = step["type"]
    if kind == "Sequence":
        return tuple(cut for part in step["pretokenizers"] for cut in split_patterns(part))
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return (GPT2_WORDS,) if step["use_regex"] else ()
    if kind == "Digits" and step["individual_digits"]:
        return ("digits",)
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return (step["pattern"].get("Regex", "?"),)
    return (kind,)


def special_tokens(
    tokenizer: PreTrainedTokenizerBase,
    document: Mapping[str, Any],
    end_tokens: Sequence[int],
    num_tokens: int,
    sentencepiece: bool,
) -> Metadata:
    """Keys of the special tokens, and whether a text gets them by itself; ExportError for one that
    is none of the vocabulary."""
    probe = tokenizer("a", add_special_tokens=True)["input_ids"]
    ends = [index for index in (tokenizer.eos_token_id, *end_tokens) if index is not None]
    ends = list(dict.fromkeys(ends))
    names = {
        "bos": tokenizer.bos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
        **dict(zip(("eos", "eot", "eom"), ends, strict=False)),
    }
    for name, index in names.items():
        if index is not None and not 0 <= index < num_tokens:
            raise ExportError(
                f"the token {name!r} is {index}; the model's vocabulary is 0 to {num_tokens - 1}"
            )
    keys: Metadata = {
        f"tokenizer.ggml.{name}_token_id": index
        for name, index in names.items()
        if index is not None
    }
    keys["tokenizer.ggml.add_bos_token"] = names["bos"] is not None and probe[0] == names["bos"]
    keys["tokenizer.ggml.add_eos_token"] = bool(ends) and probe[-1] == ends[0]
    keys["tokenizer.ggml.add_space_prefix"] = sentencepiece and has_space_prefix(document)
    return keys


def has_space_prefix(document: Mapping[str, Any]) -> bool:
    """Whether a SentencePiece tokenizer puts a space before the text."""
    normalizer = document.get("normalizer") or {}
    steps = [normalizer, *normalizer.get("normalizers", [])]
    if any(step.get("type") == "Prepend" for step in steps):
        return True
    words = document.get("pre_tokenizer") or {}
    return str(words.get("prepend_scheme", "never")) != "never"


def templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The chat templates by name; the one without a name is `default`."""
    template = tokenizer.chat_template
    if template is None:
        return {}
    return dict(template) if isinstance(template, dict) else {"default": template}
