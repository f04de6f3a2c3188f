"""One pass of the base over its answers: what segmentation and training need of every token.

For the token a_i of an answer, from the distribution p(. | prompt, a_1..a_(i-1)):

    entropy           -sum p ln p, in nats
    top probability   max p, and the token that has it (greedy)
    log probability   ln p(a_i)
    top k             the k likeliest tokens and their ln p, where asked for

Thresholds are chosen later, without another pass.  A folder holds `index.json` and shards; a shard
that is in the index is whole.  A run goes on with the answers that are in no shard.

Shapes: B rows, L tokens, P positions of a slice, T tokens of a shard, K likeliest, V vocabulary.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.errors import ConfigError, WorkError
from lightstride.files import whole_file
from lightstride.files.read import Count, file_digest, read_json
from lightstride.files.sealed import opened, write_sealed
from lightstride.models.fingerprint import fingerprint
from lightstride.models.sliced_logits import picked_logits
from lightstride.progress import Bar
from lightstride.smash.data.answers import Answer

VERSION = 1
INDEX = "index.json"
SHARD_TOKENS = 2**16
"""Tokens of answers in a shard, about."""
DTYPES = {
    "entropy": torch.float32,
    "top_probability": torch.float16,
    "log_probability": torch.float32,
    "greedy": torch.int32,
    "top_ids": torch.int32,
    "top_log_probabilities": torch.float16,
}
"""Types in which the numbers of each token are stored."""

Scores = dict[str, Tensor]
"""Numbers of some tokens by their names in DTYPES; the last two only where asked for."""


@dataclass(frozen=True)
class Shard:
    """A file of scores: whose, in order, and how many tokens each has."""

    file: str
    ids: tuple[str, ...]
    lengths: tuple[Count, ...]
    sha256: str = ""
    """Of the file; empty in folders of versions that had none."""

    def __post_init__(self) -> None:
        """ValueError unless it is a file of the folder's, with a length for every id."""
        if not re.fullmatch(r"\d+\.safetensors", self.file):
            raise ValueError(f"{self.file!r} is no shard's name")
        if len(self.ids) != len(self.lengths):
            raise ValueError(f"{self.file} has other ids than lengths")


@dataclass(frozen=True)
class Index:
    """Contents of a folder of scores."""

    base: str
    top_k: int
    shards: tuple[Shard, ...] = ()


def score_answers(
    model: PreTrainedModel,
    answers: Sequence[Answer],
    folder: Path,
    *,
    top_k: int = 0,
    batch_tokens: int = 8192,
    progress: bool = False,
) -> None:
    """Store the scores of all answers in a folder; those that are there already stay.

    Raises WorkError where the folder's scores are of another base or another top k.
    """
    index = open_index(folder, fingerprint(model), top_k)
    done = {name for shard in index.shards for name in shard.ids}
    missing = [each for each in answers if each.id not in done]
    missing.sort(key=lambda each: (len(each.prompt) + len(each.answer), each.id))
    bar = Bar(total=len(answers), desc="scores", unit="", disable=not progress)
    bar.update(len(answers) - len(missing))
    with bar:
        for group in shards_of(missing):
            scores = []
            for batch in batches_of(group, batch_tokens):
                scores += score_batch(model, batch, top_k)
                bar.update(len(batch))
            index = add_shard(folder, index, group, scores)


@torch.inference_mode()
def score_batch(model: PreTrainedModel, batch: Sequence[Answer], top_k: int) -> list[Scores]:
    """The scores of each answer of a batch, on the CPU."""
    width = max(len(each.prompt) + len(each.answer) for each in batch)
    rows = [(*each.prompt, *each.answer) for each in batch]
    tokens_BL = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    places_L = torch.arange(width)
    starts_B1 = torch.tensor([[len(each.prompt)] for each in batch])
    ends_B1 = torch.tensor([[len(row)] for row in rows])
    picked_BL = (places_L >= starts_B1 - 1) & (places_L < ends_B1 - 1)
    tokens_N = tokens_BL.roll(-1, dims=1)[picked_BL].to(model.device)
    inputs = [each.to(model.device) for each in (tokens_BL, places_L < ends_B1, picked_BL)]
    slices, at = [], 0
    for logits_PV in picked_logits(model, *inputs):
        slices.append(token_scores(logits_PV, tokens_N[at : at + len(logits_PV)], top_k))
        at += len(logits_PV)
    whole = {name: torch.cat([part[name] for part in slices]).cpu() for name in slices[0]}
    lengths = [len(each.answer) for each in batch]
    split = {name: tensor.split(lengths) for name, tensor in whole.items()}
    return [{name: parts[row] for name, parts in split.items()} for row in range(len(batch))]


def token_scores(logits_PV: Tensor, tokens_P: Tensor, top_k: int) -> Scores:
    """Numbers to store of each token, given the logits that predict it and the token itself."""
    log_PV = logits_PV.float().log_softmax(-1)
    top_P, greedy_P = log_PV.max(-1)
    found = {
        "entropy": -(log_PV.exp() * log_PV.clamp(min=-1e4)).sum(-1),
        "top_probability": top_P.exp(),
        "log_probability": log_PV.gather(1, tokens_P[:, None])[:, 0],
        "greedy": greedy_P,
    }
    if top_k:
        found["top_log_probabilities"], found["top_ids"] = log_PV.topk(top_k, dim=-1)
    return {name: tensor.to(DTYPES[name]) for name, tensor in found.items()}


def shards_of(answers: Sequence[Answer]) -> Iterator[list[Answer]]:
    """Answers in groups of about a shard's size."""
    group: list[Answer] = []
    for each in answers:
        group.append(each)
        if sum(len(one.answer) for one in group) >= SHARD_TOKENS:
            yield group
            group = []
    if group:
        yield group


def batches_of(answers: Sequence[Answer], batch_tokens: int) -> Iterator[list[Answer]]:
    """Answers in batches that, padded, have at most so many tokens, or one answer."""
    batch: list[Answer] = []
    longest = 0
    for each in answers:
        longest = max(longest, len(each.prompt) + len(each.answer))
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch, longest = [], len(each.prompt) + len(each.answer)
        batch.append(each)
    if batch:
        yield batch


def open_index(folder: Path, base: str, top_k: int) -> Index:
    """The index of a folder of this base's scores; an empty one where there is none yet."""
    if top_k < 0:
        raise ConfigError(f"top_k is {top_k}; it must be 0 or more")
    if not (folder / INDEX).exists():
        return Index(base, top_k)
    index = read_index(folder)
    if (index.base, index.top_k) != (base, top_k):
        what = "base" if index.base != base else "top_k"
        raise WorkError(
            f"the scores in {folder} are of another run: {what} differs; name another folder"
        )
    return index


def read_index(folder: Path) -> Index:
    """The index of a folder; WorkError where it is missing, damaged, or of another version."""
    path = folder / INDEX
    if not path.exists():
        raise WorkError(f"there are no scores in {folder}: {INDEX} is missing")
    try:
        document = read_json(path, dict[str, object], WorkError)
        if (version := document.get("version", VERSION)) == VERSION:
            return opened(document, Index, str(path), WorkError)
    except WorkError as error:
        raise WorkError(f"{path} is damaged: delete the folder {folder}") from error
    raise WorkError(f"{path} is of version {version}; this is {VERSION}")


def add_shard(
    folder: Path, index: Index, answers: Sequence[Answer], scores: Sequence[Scores]
) -> Index:
    """Write one more shard, then the index that names it."""
    file = f"{len(index.shards):05}.safetensors"
    tensors = {name: torch.cat([one[name] for one in scores]) for name in scores[0]}
    with whole_file(folder / file) as partial:
        save_file(tensors, partial)
    ids, lengths = [each.id for each in answers], [len(each.answer) for each in answers]
    shard = Shard(file, tuple(ids), tuple(lengths), file_digest(folder / file, WorkError))
    index = Index(index.base, index.top_k, (*index.shards, shard))
    document = {
        "version": VERSION,
        "base": index.base,
        "top_k": index.top_k,
        "shards": [vars(each) for each in index.shards],
    }
    write_sealed(folder / INDEX, document)
    return index


def read_scores(folder: Path) -> dict[str, Scores]:
    """The scores of every answer in a folder, by its id."""
    found: dict[str, Scores] = {}
    for shard in read_index(folder).shards:
        path = folder / shard.file
        try:
            digest = file_digest(path, WorkError)
            if shard.sha256 and digest != shard.sha256:
                raise WorkError("it is not what was written")
            tensors = load_file(path)
        except (OSError, SafetensorError, ValueError, WorkError) as error:
            raise WorkError(f"{path} is damaged: delete the folder {folder}") from error
        ends = list(accumulate(shard.lengths, initial=0))
        if not are_scores(tensors, ends[-1]):
            raise WorkError(f"{path} is not as {INDEX} describes it: delete the folder {folder}")
        for name, start, end in zip(shard.ids, ends[:-1], ends[1:], strict=True):
            found[name] = {key: tensor[start:end] for key, tensor in tensors.items()}
    return found


def are_scores(tensors: Scores, num_tokens: int) -> bool:
    """Whether these are scores of so many tokens, by names, types and lengths."""
    needed = set(DTYPES) - {"top_ids", "top_log_probabilities"}
    return needed <= set(tensors) <= set(DTYPES) and all(
        tensor.dim() >= 1
        and len(tensor) == num_tokens
        and tensor.dtype == DTYPES[name]
        and (tensor.dim() == 1) == (name in needed)
        for name, tensor in tensors.items()
    )
