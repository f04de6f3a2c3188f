"""Other ways to a model of the same size, for `recover.py`: fewer blocks, the package optipfair.

optipfair is no dependency of this project: install it in the environment of the benchmark.
Shapes: N windows, L tokens, D hidden size.
"""

import argparse
import copy
import importlib
import itertools
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from lightstride.checkpoint import read_record, save_checkpoint
from lightstride.config.recover import split_weight
from lightstride.data.windows import packed_windows
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import load_model, load_tokenizer

WINDOWS = 8
"""Windows that blocks are judged by."""
TIMED = 4
"""Batches of optipfair's training that are timed, to know how many fill the minutes."""


def removed_share(folder: Path) -> float:
    """Share of the blocks' parameters that a cut folder lacks, as its record says."""
    numbers = read_record(folder)["numbers"]
    assert isinstance(numbers, dict)
    return float(numbers["sparsity"])


def texts(flags: argparse.Namespace, num_tokens: int) -> Tensor:
    """Windows of 512 tokens of the learning texts by their weights, mixed, (N, L)."""
    tokenizer = load_tokenizer(flags.model)
    weighted = [split_weight(source) for source in flags.text]
    total = sum(weight for _, weight in weighted)
    parts = [
        packed_windows(
            source,
            tokenizer,
            num_tokens=int(num_tokens * weight / total),
            window=512,
            seed=flags.seed,
            fewer=True,
        ).tokens_NL
        for source, weight in weighted
    ]
    tokens_NL = torch.cat(parts)
    generator = torch.Generator().manual_seed(flags.seed)
    return tokens_NL[torch.randperm(len(tokens_NL), generator=generator)]


def depth_cut(
    dense: PreTrainedModel, share: float, flags: argparse.Namespace
) -> tuple[PreTrainedModel, float]:
    """A model without the blocks that turn their input least, and the share that is gone."""
    adapter = adapter_for(dense.config)
    likeness = block_likeness(dense, texts(flags, 512 * WINDOWS))
    count = round(share * len(likeness))
    gone = set(sorted(range(len(likeness)), key=lambda index: -likeness[index])[:count])
    cut = copy.deepcopy(dense)
    decoder = adapter.decoder(cut)
    kept = [block for index, block in enumerate(adapter.blocks(cut)) if index not in gone]
    for index, block in enumerate(kept):
        block.self_attn.layer_idx = index
    decoder.layers = nn.ModuleList(kept)
    cut.config.num_hidden_layers = len(kept)
    kinds = getattr(cut.config, "layer_types", None)
    if kinds is not None:
        cut.config.layer_types = [kind for i, kind in enumerate(kinds) if i not in gone]
    return cut, count / len(likeness)


@torch.no_grad()
def block_likeness(dense: PreTrainedModel, tokens_NL: Tensor) -> list[float]:
    """Mean cosine between the input and the output of every block, as in ShortGPT (2403.03853)."""
    adapter = adapter_for(dense.config)
    found = []
    outputs = adapter.decoder(dense)(tokens_NL, output_hidden_states=True, use_cache=False)
    states = outputs.hidden_states
    for before, after in itertools.pairwise(states):
        found.append(float(nn.functional.cosine_similarity(before, after, dim=-1).float().mean()))
    return found


def optipfair_cut(dense: PreTrainedModel, share: float) -> tuple[PreTrainedModel, float]:
    """FFN channels cut by the package's default method, and the share that is gone."""
    geometry = adapter_for(dense.config).geometry(dense.config)
    channels = sum(geometry.parameters(shape) for shape in geometry.ffn)
    wanted = share * geometry.prunable_parameters / channels
    pruned = importlib.import_module("optipfair").prune_model(
        copy.deepcopy(dense), pruning_percentage=100 * wanted, show_progress=False
    )
    left = adapter_for(pruned.config).geometry(pruned.config)
    return pruned, 1 - left.prunable_parameters / geometry.prunable_parameters


def optipfair_trained(
    cut: Path, folder: Path, minutes: float, flags: argparse.Namespace
) -> dict[str, object]:
    """Train a cut model by the package's own trainer at its defaults, one pass; how it went.

    The pass is as long as the minutes allow by the time of its first batches.
    """
    distill = importlib.import_module("optipfair.distillation").distill_model
    dense = load_model(flags.model, dtype=torch.bfloat16)
    student = load_model(str(cut), dtype=torch.bfloat16)
    now = time.process_time if flags.clock == "processor" else time.monotonic
    per_thread = torch.get_num_threads() if flags.clock == "processor" else 1
    tokens_NL = texts(flags, flags.tokens)
    start = now()
    distill(copy.deepcopy(student), dense, loader(tokens_NL[:TIMED]), epochs=1, show_progress=False)
    seconds = (now() - start) / per_thread / TIMED
    count = min(len(tokens_NL), max(TIMED, int(60 * minutes / seconds)))
    start = now()
    distill(student, dense, loader(tokens_NL[:count]), epochs=1, show_progress=True)
    taken = (now() - start) / per_thread
    record = {**read_record(cut), "kind": "recover"}
    save_checkpoint(student, load_tokenizer(flags.model), folder, record=record)
    return {"tokens": count * 512, "seconds": taken, "tokens_per_second": count * 512 / taken}


def loader(tokens_NL: Tensor) -> "DataLoader[dict[str, Tensor]]":
    """Batches of one row, as the trainer reads them."""
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in tokens_NL]
    return DataLoader(rows, batch_size=1)  # type: ignore[arg-type]
