"""The measurements of `recover.py`: one model held against the dense one."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from lightstride.checkpoint import open_decoder
from lightstride.data.documents import read_documents
from lightstride.data.prompts import read_prompts
from lightstride.data.windows import strided_windows
from lightstride.evaluate.fidelity import fidelity
from lightstride.evaluate.instructions import followed, make_instructions
from lightstride.evaluate.last_words import last_word_accuracy, passages
from lightstride.evaluate.lm_harness import HarnessModel, load_tasks, run_task
from lightstride.evaluate.loops import looping_share
from lightstride.evaluate.perplexity import perplexity
from lightstride.export.gguf.round_trip import quantized_copy
from lightstride.generate import Decoder, PlainDecoder
from lightstride.generate.chat_template import chat_tokens

WINDOW = 2048
YARDSTICKS = ("q8_0", "q4_k_m")


class Judge:
    """The dense model with the texts that all models are judged by."""

    def __init__(self, flags: argparse.Namespace) -> None:
        self.flags = flags
        self.dense = open_decoder(flags.model, dtype=torch.bfloat16)
        windows = strided_windows(
            flags.test, self.dense.tokenizer, window=WINDOW, every=flags.every
        )
        self.windows_NL = windows.tokens_NL
        self.passages = passages(read_documents(flags.passages or flags.test), flags.num_passages)

    def opened(self, source: str) -> Decoder:
        """A model by its folder or name, or the dense one after a type of llama.cpp's."""
        if source in YARDSTICKS:
            return PlainDecoder(quantized_copy(self.dense.model, source), self.dense.tokenizer)
        return open_decoder(source, dtype=torch.bfloat16)

    def measured(self, source: str, known: Mapping[str, object]) -> dict[str, object]:
        """All figures of one model that are asked for and not known."""
        missing = {name: of for name, of in self.figures(source).items() if name not in known}
        if not missing:
            return {}
        decoder = self.opened(source)
        return {name: of(decoder) for name, of in missing.items()}

    def figures(self, source: str) -> dict[str, Callable[[Decoder], object]]:
        """How every figure that is asked for is made."""
        flags = self.flags
        found: dict[str, Callable[[Decoder], object]] = {
            "parameters": lambda it: sum(each.numel() for each in it.model.parameters()),
            "perplexity": lambda it: perplexity(it.model, self.windows_NL, progress=True).value,
            "last_words": self.last_words,
        }
        if flags.fidelity_windows and source != flags.model:
            found["fidelity"] = self.fidelity
        if flags.prompts:
            found["loops"] = lambda it: looping_share(it, self.prompt_tokens(it))
        if flags.instructions:
            asked = make_instructions(flags.instructions)
            found["instructions"] = lambda it: followed(it, asked)
        if flags.tasks:
            found["tasks"] = self.tasks
        return found

    def fidelity(self, decoder: Decoder) -> dict[str, object]:
        """How far from the dense model."""
        windows_NL = self.windows_NL[: self.flags.fidelity_windows]
        return asdict(fidelity(decoder.model, self.dense.model, windows_NL))

    def last_words(self, decoder: Decoder) -> dict[str, object]:
        """Last words of passages that are right."""
        rights = last_word_accuracy(decoder, self.passages, WINDOW)
        return {"right": sum(rights) / len(rights), "passages": len(rights)}

    def prompt_tokens(self, decoder: Decoder) -> list[list[int]]:
        """The prompts by the model's chat template."""
        prompts = read_prompts([self.flags.prompts], limit=self.flags.num_prompts)
        said = [[message.as_dict() for message in prompt.messages] for prompt in prompts]
        return [chat_tokens(decoder.tokenizer, messages) for messages in said]

    def tasks(self, decoder: Decoder) -> dict[str, object]:
        """The tasks' scores on their first items, and their mean."""
        flags = self.flags
        tasks = load_tasks(flags.tasks, task_data=flags.task_data and Path(flags.task_data))
        model = HarnessModel(decoder)
        results = [run_task(model, name, task, limit=flags.limit) for name, task in tasks.items()]
        scores = {one.task: one.metrics[one.metric].value for one in results}
        mean = sum(scores.values()) / len(scores)
        return {**scores, "mean": mean, "most_items": flags.limit}
