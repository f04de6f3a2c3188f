"""llama.cpp cuts a text into the tokens that the model's own tokenizer cuts it into."""

from pathlib import Path

import pytest
import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlamaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

pytest.importorskip("xllamacpp")
from gguf import GGUFReader

import lightstride.errors
import lightstride.models.shapes
from helpers.engine import Engine
from helpers.toys import byte_tokenizer, tiny_llama
from lightstride.errors import ExportError
from lightstride.export.gguf.vocabulary import (
    GPT2_WORDS,
    TEKKEN_WORDS,
    WORDS,
    TokenType,
    read_vocabulary,
)
from lightstride.export.gguf.weights import ModelWeights
from lightstride.export.gguf.write import write_gguf
from lightstride.models.families.registry import adapter_for

TEXT = (
    "It's 1234567 o'clock, THEY'LL say; we've 3.14159 and  two   spaces.\n\n\tTabs\r\n"
    "camelCaseWord HTMLParser don't stop  \n "
    "naïve café Ünïcödé 日本語テキスト русский текст 🙂🙂 "
    "x=y+z; //path/to/file "
    "HELLO'S world'd 12 34 5 0x1F _under_score_ ... !!! ?? (a)[b]{c} end   "
)
TRAINING = [lightstride.errors.__doc__, lightstride.models.shapes.__doc__]
SPECIAL = ["<|start|>", "<|end|>"]


def byte_level(*cuts: pre_tokenizers.PreTokenizer, use_regex: bool = False) -> Tokenizer:
    """A byte-level tokenizer that cuts words this way.

    It learned without cuts, so its merges cross words, and a wrong cut shows.
    """
    tokenizer = Tokenizer(models.BPE())
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = letters
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces = [TEXT[i : i + 12] for i in range(len(TEXT) - 12)]
    tokenizer.train_from_iterator([*TRAINING, *pieces, TEXT.upper()], trainer)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, letters])
    return tokenizer


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def sentencepiece(*, prefix: bool) -> Tokenizer:
    """A tokenizer of the kind of Llama 2 (with a space before the text) or Gemma (without)."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{b:02X}>": 3 + b for b in range(256)}}
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Replace(" ", "▁")
    learned.train_from_iterator(TRAINING, trainers.BpeTrainer(vocab_size=300))
    for token in sorted(learned.get_vocab(), key=learned.get_vocab().__getitem__):
        vocabulary[token] = len(vocabulary)
    merges = [
        (token[:i], token[i:])
        for token in vocabulary
        if not token.startswith("<")
        for i in range(1, len(token))
        if token[:i] in vocabulary and token[i:] in vocabulary
    ]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    steps = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), *steps] if prefix else steps
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    if tokenizer.model.byte_fallback:
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    else:
        tokenizer.add_special_tokens(SPECIAL)
        tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
        names = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def written(tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """A GGUF with this tokenizer and a toy model."""
    model = tiny_llama(vocab_size=len(tokenizer) + 3)
    geometry = adapter_for(model.config).geometry(model.config)
    path = folder / "model.gguf"
    weights = ModelWeights(model)
    write_gguf(weights, model.config, geometry, tokenizer, path, dtype="f32", name="toy")
    return path


TOKENIZERS = {
    "gpt-2": lambda: byte_level(use_regex=True),
    "gpt-2 as an expression": lambda: byte_level(split(GPT2_WORDS)),
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True), use_regex=True),
    "llama 3": lambda: byte_level(split(WORDS % r"\p{N}{1,3}")),
    "qwen 2": lambda: byte_level(split(WORDS % r"\p{N}")),
    "tekken": lambda: byte_level(split(TEKKEN_WORDS)),
    "llama 2": lambda: sentencepiece(prefix=True),
    "gemma": lambda: sentencepiece(prefix=False),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_engine_tokenizes_alike(name: str, tmp_path: Path) -> None:
    tokenizer = wrapped(TOKENIZERS[name]())
    with_special = tokenizer("Hello")["input_ids"]
    engine = Engine(written(tokenizer, tmp_path))
    for text in (TEXT, TEXT.upper(), "Hello world", " leading", "1", "\n", *TEXT.split("'")):
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert engine.tokenize(text) == expected, text
    assert engine.tokenize("Hello", add_special=True) == with_special
    assert (with_special[0] == tokenizer.bos_token_id) == (name in ("llama 2", "gemma"))


def test_engine_knows_special_and_added_tokens(tmp_path: Path) -> None:
    tokenizer = wrapped(byte_level(use_regex=True))
    text = f"{SPECIAL[0]}user says <tool> hi{SPECIAL[1]}\nmore"
    tokens = tokenizer(text)["input_ids"]
    assert tokens[0] == tokenizer.bos_token_id
    assert tokenizer.convert_tokens_to_ids("<tool>") in tokens
    assert Engine(written(tokenizer, tmp_path)).tokenize(text) == tokens


def test_every_key_of_a_tokenizer_is_written(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(add_bos=True)
    written(tokenizer, tmp_path)
    reader = GGUFReader(tmp_path / "model.gguf")

    def key(name: str) -> object:
        return reader.get_field(f"tokenizer.{name}").contents()

    assert key("ggml.bos_token_id") == tokenizer.bos_token_id
    assert key("ggml.eos_token_id") == tokenizer.eos_token_id
    assert key("ggml.padding_token_id") == tokenizer.pad_token_id
    assert key("ggml.unknown_token_id") == tokenizer.unk_token_id
    assert key("ggml.add_bos_token") is True
    assert key("ggml.add_eos_token") is False
    assert key("chat_template") == tokenizer.chat_template
    types = key("ggml.token_type")
    assert len(types) == 263
    assert types[65] == TokenType.NORMAL
    assert types[256:260] == [TokenType.CONTROL] * 4
    assert types[260:] == [TokenType.UNUSED] * 3


def test_all_end_tokens_are_kept() -> None:
    tokenizer = wrapped(byte_level(use_regex=True))
    config = tiny_llama(vocab_size=len(tokenizer)).config
    vocabulary = read_vocabulary(tokenizer, config, end_tokens=(7, tokenizer.eos_token_id, 9))
    assert vocabulary.special["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert vocabulary.special["tokenizer.ggml.eot_token_id"] == 7
    assert vocabulary.special["tokenizer.ggml.eom_token_id"] == 9


def test_an_end_token_outside_the_vocabulary_is_refused() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(ExportError, match="the token 'eot' is -1; the model's vocabulary is 0 to"):
        read_vocabulary(tokenizer, tiny_llama().config, end_tokens=(-1,))


def test_named_chat_templates_are_kept() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": "one", "tools": "two"}
    keys = read_vocabulary(tokenizer, tiny_llama().config, ()).metadata()
    assert keys["tokenizer.chat_template"] == "one"
    assert keys["tokenizer.chat_template.tools"] == "two"


def test_llama_3_skips_merges_for_whole_words() -> None:
    tokenizer = byte_level(split(WORDS % r"\p{N}{1,3}"))
    names = []
    for skip in (False, True):
        tokenizer.model.ignore_merges = skip
        config = tiny_llama(vocab_size=900).config
        names.append(read_vocabulary(wrapped(tokenizer), config, ()).pre)
    assert names == ["dbrx", "llama-bpe"]


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (lambda: byte_level(split(r"\w+")), "does not know how this tokenizer cuts words"),
        (lambda: byte_level(), "does not know how"),
        (lambda: Tokenizer(models.WordLevel({"a": 0}, "a")), "type BPE, not WordLevel"),
    ],
)
def test_unknown_tokenizers_are_refused(tokenizer, reason: str) -> None:
    wanted = PreTrainedTokenizerFast(tokenizer_object=tokenizer())
    with pytest.raises(ExportError, match=reason):
        read_vocabulary(wanted, tiny_llama(vocab_size=900).config, ())


def test_tokens_beyond_the_embedding_are_refused() -> None:
    with pytest.raises(ExportError, match="is number 256, the model has 256 rows"):
        read_vocabulary(byte_tokenizer(), LlamaConfig(vocab_size=256, pad_token_id=0), ())


def test_scores_are_finite_for_every_token(tmp_path: Path) -> None:
    config = tiny_llama(vocab_size=900).config
    vocabulary = read_vocabulary(wrapped(sentencepiece(prefix=True)), config, ())
    assert len(vocabulary.scores) == 900
    assert torch.tensor(vocabulary.scores).isfinite().all()
    assert vocabulary.types[0] == TokenType.UNKNOWN
    assert vocabulary.types[5] == TokenType.BYTE
