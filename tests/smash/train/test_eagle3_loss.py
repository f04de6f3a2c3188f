"""Chains of all places at once against a chain decoded place by place."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightstride.smash.model.eagle3 import Eagle3Config, Eagle3Head
from lightstride.smash.train.eagle3_loss import chain_states, counted_steps, shifted

SMALL = Eagle3Config(
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    num_channels=48,
    vocab_size=260,
    draft_vocab_size=40,
    taps=(2, 4, 5),
    max_positions=128,
)


def random_head(window: int | None) -> Eagle3Head:
    head = Eagle3Head(replace(SMALL, window=window))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head.eval()


class Cache:
    """Keys of the context and of one chain, as a decoder holds them."""

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.keys.append(key)
        self.values.append(value)
        first = 0 if self.window is None else max(0, len(self.keys) - self.window)
        return torch.nn.functional.scaled_dot_product_attention(
            query,
            torch.cat(self.keys[first:], 2),
            torch.cat(self.values[first:], 2),
            enable_gqa=True,
        )


def decoded(
    head: Eagle3Head, taps: Tensor, embeddings: Tensor, start: int, place: int, num_steps: int
) -> list[Tensor]:
    """The states of one chain, with a cache: the context place by place, then its steps."""
    fused, cache = head.fuse(taps), Cache(head.config.window)
    for at in range(start, place + 1):
        state = head(
            embeddings[:, at + 1 : at + 2], fused[:, at : at + 1], torch.tensor([[at]]), cache
        )
    found = [state]
    for step in range(1, num_steps):
        after = place + 1 + step
        token = embeddings[:, after : after + 1]
        state = head(token, state, torch.tensor([[place + step]]), cache)
        found.append(state)
    return found


@pytest.mark.parametrize("window", [None, 3])
def test_all_chains_at_once_are_the_chains_one_by_one(window: int | None) -> None:
    head = random_head(window)
    documents = torch.tensor([[0] * 6 + [1] * 8])
    taps, embeddings = torch.randn(1, 14, 3, 32), torch.randn(1, 14, 32)
    together = chain_states(head, taps, embeddings, documents, 3)
    for start, end in ((0, 6), (6, 14)):
        for place in range(start, end - 3):
            alone = decoded(head, taps, embeddings, start, place, 3)
            for whole, one in zip(together, alone, strict=True):
                torch.testing.assert_close(whole[:, place : place + 1], one)


def test_a_chain_counts_while_its_token_is_of_the_same_answer() -> None:
    documents = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]])
    is_answer = torch.tensor([[0, 0, 1, 1, 1, 0, 1, 1]]).bool()
    assert counted_steps(is_answer, documents, 0).tolist() == [[1, 1, 1, 0, 0, 1, 0, 0]]
    assert counted_steps(is_answer, documents, 1).tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]]


def test_shifting_brings_what_stands_later() -> None:
    assert shifted(torch.tensor([[1, 2, 3]]), 1).tolist() == [[2, 3, 0]]
    assert shifted(torch.tensor([[1, 2, 3]]), 9).tolist() == [[0, 0, 0]]
    assert shifted(torch.ones(1, 3, 2), 2).sum() == 2
