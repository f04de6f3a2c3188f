"""The measurements of `recover.py`: one model held against the dense one."""

import argparse
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

    def measured(self, source: str) -> dict[str, object]:
        """All figures of one model."""
        flags, decoder = self.flags, self.opened(source)
        found: dict[str, object] = {
            "parameters": sum(p.numel() for p in decoder.model.parameters()),
            "perplexity": perplexity(decoder.model, self.windows_NL, progress=True).value,
        }
        count = flags.fidelity_windows
        if count and source != flags.model:
            compared = fidelity(decoder.model, self.dense.model, self.windows_NL[:count])
            found["fidelity"] = asdict(compared)
        rights = last_word_accuracy(decoder, self.passages, WINDOW)
        found["last_words"] = {"right": sum(rights) / len(rights), "passages": len(rights)}
        if flags.prompts:
            found["loops"] = looping_share(decoder, self.prompt_tokens(decoder))
        if flags.instructions:
            found["instructions"] = followed(decoder, make_instructions(flags.instructions))
        if flags.tasks:
            found["tasks"] = self.tasks(decoder)
        return found

    def prompt_tokens(self, decoder: Decoder) -> list[list[int]]:
        """The prompts by the model's chat template."""
        prompts = read_prompts([self.flags.prompts], limit=self.flags.num_prompts)
        said = [[message.as_dict() for message in prompt.messages] for prompt in prompts]
        return [chat_tokens(decoder.tokenizer, messages) for messages in said]

    def tasks(self, decoder: Decoder) -> dict[str, object]:
        """The tasks' scores, and their mean."""
        flags = self.flags
        tasks = load_tasks(flags.tasks, task_data=flags.task_data and Path(flags.task_data))
        model = HarnessModel(decoder)
        results = [run_task(model, name, task, limit=flags.limit) for name, task in tasks.items()]
        scores = {one.task: one.metrics[one.metric].value for one in results}
        return {**scores, "mean": sum(scores.values()) / len(scores)}
