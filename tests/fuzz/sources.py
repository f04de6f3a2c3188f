"""Builders of what is damaged: folders with small models, texts, results and runs on the way."""

import gzip
import json
import os
import shutil
from pathlib import Path
from unittest.mock import patch

import pyarrow
import pyarrow.parquet
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fuzz.commands import FAMILIES, TOKENIZERS, command_line
from helpers.cuts import cut_all
from helpers.expert_toys import tiny_qwen3_moe
from helpers.headed_toys import deep_toy, random_head
from helpers.memory_toys import mixed_memory
from helpers.reports import write_runs
from helpers.smash_toys import toy
from helpers.toys import TINY, byte_tokenizer, tiny_llama
from helpers.trained_tokenizer import trained_tokenizer
from lightstride import cli
from lightstride.checkpoint import save_checkpoint, save_headed
from lightstride.export.gguf.weights import ModelWeights
from lightstride.export.gguf.write import write_gguf
from lightstride.memory.plan_files import MemoryFile, write_plans
from lightstride.models.families.registry import adapter_for
from lightstride.smash.model.eagle3_files import write_head

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def small(**changes: object) -> PreTrainedModel:
    return tiny_llama(**{"num_channels": 32, "hidden_size": 16, **changes})  # type: ignore[arg-type]


def chatty() -> PreTrainedTokenizerBase:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_texts(home: Path) -> None:
    """What commands read beside a model."""
    lines = [{"text": f"line {i} of a text that is long enough, or nearly " * 2} for i in range(40)]
    jsonl = "".join(json.dumps(line) + "\n" for line in lines)
    (home / "texts.jsonl").write_text(jsonl)
    (home / "texts.jsonl.gz").write_bytes(gzip.compress(jsonl.encode(), mtime=0))
    (home / "texts.txt").write_text("a text without any end, or nearly. " * 40)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), home / "texts.parquet")
    prompts = [{"prompt": "what is 1?"}, {"messages": [{"role": "user", "content": "hello"}]}]
    prompts += [{"instruction": "say", "input": str(n)} for n in range(8)]
    (home / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    question = {"query": "what is it?", "choices": ["a", "b", "cd"], "gold": 1}
    (home / "arc_easy.jsonl").write_text("\n".join([json.dumps(question)] * 3))
    solved = json.dumps({"question": "1 + 1?", "answer": "it is #### 2"})
    for split in ("train", "test"):
        (home / f"gsm8k_{split}.jsonl").write_text("\n".join([solved] * 3))


def plain(home: Path) -> None:
    """A toy checkpoint with everything a folder may hold."""
    write_texts(home)
    record = {"kind": "prune", "data": {"calibration": {"documents": ["a"]}}}
    save_checkpoint(small(), chatty(), home / "model", record=record)


def families(home: Path) -> None:
    """A checkpoint of each family."""
    for name in FAMILIES:
        save_checkpoint(TINY[name](), byte_tokenizer(), home / name)


def tokenizers(home: Path) -> None:
    """A checkpoint with a tokenizer of each algorithm."""
    words = [TEMPLATE, "some words for a tokenizer to learn of, and some more words"]
    special = ["<unk>", "<bos>", "<eos>", "<pad>"]
    for name in TOKENIZERS:
        if name == "bpe":
            fast = trained_tokenizer()
        else:
            model, trainer = {
                "unigram": (
                    models.Unigram(),
                    trainers.UnigramTrainer(
                        vocab_size=60,
                        special_tokens=special,
                        unk_token="<unk>",
                        show_progress=False,
                    ),
                ),
                "wordlevel": (
                    models.WordLevel(unk_token="<unk>"),
                    trainers.WordLevelTrainer(special_tokens=special, show_progress=False),
                ),
                "wordpiece": (
                    models.WordPiece(unk_token="<unk>"),
                    trainers.WordPieceTrainer(
                        vocab_size=60, special_tokens=special, show_progress=False
                    ),
                ),
            }[name]
            raw = Tokenizer(model)
            raw.normalizer = normalizers.Sequence(
                [normalizers.NFKC(), normalizers.Replace("x", "y")]
            )
            raw.pre_tokenizer = pre_tokenizers.Metaspace()
            raw.decoder = decoders.Metaspace()
            raw.train_from_iterator(words, trainer)
            fast = PreTrainedTokenizerFast(
                tokenizer_object=raw, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
            )
        save_checkpoint(small(), fast, home / name)


def experts(home: Path) -> None:
    """A model with several experts, and one whose experts are cut to widths of their own."""
    save_checkpoint(tiny_qwen3_moe(), byte_tokenizer(), home / "model")
    model = tiny_qwen3_moe()
    cut_all(model)
    save_checkpoint(model, byte_tokenizer(), home / "cut")


def sharded(home: Path) -> None:
    """The same in several files with an index."""
    write_texts(home)
    save_checkpoint(small(), chatty(), home / "model", shard_bytes=10_000)
    assert (home / "model" / "model.safetensors.index.json").exists()


def layered(home: Path) -> None:
    """Blocks of different widths."""
    model = tiny_llama()
    cut_all(model)
    write_texts(home)
    save_checkpoint(model, trained_tokenizer(), home / "model")


def smashed(home: Path) -> None:
    """Grafts and their base."""
    save_checkpoint(tiny_llama(), byte_tokenizer(), home / "base")
    model = toy(tiny_llama())
    model.config.base = str(home / "base")
    save_checkpoint(model, chatty(), home / "model")


def with_memory(home: Path) -> None:
    """A model with memory plans."""
    model = tiny_llama()
    save_checkpoint(model, chatty(), home / "model")
    memory = mixed_memory(model)
    write_plans(home / "model", MemoryFile({0.5: memory.plan}, 0.5, memory.scores), {})


def headed(home: Path) -> None:
    """A draft head with the name of its base."""
    base = deep_toy()
    save_checkpoint(base, byte_tokenizer(), home / "base")
    name = str(home / "base")
    save_headed(random_head(), base, name, chatty(), home / "model", record={"kind": "smash"})


def heads(home: Path, layout: str = "flat") -> None:
    """A published draft head and its base."""
    save_checkpoint(deep_toy(), byte_tokenizer(), home / "model")
    write_head(
        random_head(),
        home / "head",
        layout=layout,  # type: ignore[arg-type]
        base="base",
        architectures=["LlamaForCausalLM"],
        num_blocks=8,
    )


def speculators(home: Path) -> None:
    """The same as speculators writes it."""
    heads(home, "speculators")


def gguf(home: Path) -> None:
    """A GGUF file."""
    model = small()
    geometry = adapter_for(model.config).geometry(model.config)
    words = trained_tokenizer()
    weights = ModelWeights(model)
    write_gguf(weights, model.config, geometry, words, home / "a.gguf", dtype="f32", name="toy")


def cached(home: Path) -> None:
    """A GGUF file that was converted once."""
    gguf(home)
    os.environ["LIGHTSTRIDE_CACHE"] = str(home / "cache")
    assert cli.main(["generate", str(home / "a.gguf"), "-p", "ab", "--max-new-tokens", "1"]) == 0


def results(home: Path) -> None:
    """Results of runs that a report is made of."""
    write_runs(home / "runs")


def prune_work(home: Path) -> None:
    """A run that is nearly done: its output is gone, its work folder is there."""
    write_texts(home)
    save_checkpoint(small(), chatty(), home / "model")
    run(home, "prune on")


def supernet_work(home: Path) -> None:
    """A run that was killed before its last plan was saved: what it was cut from is still there."""
    with patch.object(shutil, "rmtree"):
        prune_work(home)
    shutil.rmtree(home / "out")
    (home / "work" / "size-50.json").unlink()
    (home / "work" / "round-1-50.json").unlink()


def smash_work(home: Path) -> None:
    """The same of smash."""
    write_texts(home)
    save_checkpoint(small(), chatty(), home / "model")
    run(home, "smash on")


def recover_work(home: Path) -> None:
    """The same of recover, on a pruned model."""
    write_texts(home)
    save_checkpoint(small(), chatty(), home / "dense")
    shutil.copytree(home / "dense", home / "model")
    run(home, "prune")
    shutil.rmtree(home / "model")
    (home / "out").rename(home / "model")
    run(home, "recover on")


def run(home: Path, command: str) -> None:
    """Run a command of the table; of one that goes on (`... on`) the work folder alone is left."""
    assert cli.main(command_line(command, home)) == 0
    shutil.rmtree(home / "out.work", ignore_errors=True)
    if command.endswith(" on"):
        shutil.rmtree(home / "out")
