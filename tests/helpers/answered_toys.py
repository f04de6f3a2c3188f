"""Toy examples: answers that follow a rule which a small base knows, and their scores."""

import random
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from helpers.smash_toys import BASES, sharp
from lightstride.smash.data.examples import Example


def example(name: str, prompt: Sequence[int], answer: Sequence[int], base: PreTrainedModel):
    """An example whose scores are the base's own."""
    tokens = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        log_probabilities_AV = base(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    probabilities_AV = log_probabilities_AV.exp()
    return Example(
        id=name,
        domain="",
        prompt_P=torch.tensor(prompt),
        answer_A=torch.tensor(answer),
        entropy_A=-(probabilities_AV * log_probabilities_AV).sum(-1),
        greedy_A=probabilities_AV.argmax(-1),
    )


@torch.no_grad()
def answered(base: PreTrainedModel, count: int, *, length: int = 24, seed: int = 0):
    """Random prompts with the base's own greedy answers."""
    rng = random.Random(seed)
    examples = []
    for number in range(count):
        prompt = [rng.randrange(256) for _ in range(rng.randint(2, 6))]
        tokens = torch.tensor([prompt])
        for _ in range(rng.randint(length // 2, length)):
            best = base(tokens).logits[0, -1].argmax()
            tokens = torch.cat([tokens, best.view(1, 1)], dim=1)
        examples.append(
            example(f"{seed}-{number}", prompt, tokens[0, len(prompt) :].tolist(), base)
        )
    return examples


def sharp_llama() -> PreTrainedModel:
    """A base that says few different tokens."""
    return sharp(BASES["llama"]())
