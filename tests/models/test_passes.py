"""Texts past the blocks: what a model's own forward finds, with every block asked for once."""

from pathlib import Path

import pytest
import torch

from helpers.toys import TINY
from lightstride.models.opening.source import Resident
from lightstride.models.passes import Piece, Spill, passed

CONTEXTS_BL = torch.tensor([[0, 5, 9, 7], [3, 8, 8, 1]])
CONTEXT_MASK_BL = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
ENDS_RL = torch.tensor([[4, 6], [2, 2], [7, 1]])
STARTS_R = torch.tensor([1, 0, 1])


def going_on() -> list[Piece]:
    """Two contexts, one padded, and three ends of them."""
    whole_mask = torch.cat([CONTEXT_MASK_BL[STARTS_R], torch.ones_like(ENDS_RL)], 1)
    contexts = {"input_ids": CONTEXTS_BL, "attention_mask": CONTEXT_MASK_BL}
    contexts["position_ids"] = (CONTEXT_MASK_BL.cumsum(1) - 1).clamp_min(0)
    ends = {"input_ids": ENDS_RL, "attention_mask": whole_mask}
    ends["position_ids"] = (whole_mask.cumsum(1) - 1)[:, -2:]
    return [Piece(contexts, goes_on=True), Piece(ends, STARTS_R)]


@pytest.mark.parametrize("family", TINY)
def test_ends_see_their_contexts(family: str) -> None:
    model = TINY[family]()
    decoder = model.get_decoder()
    taken: list[torch.Tensor] = []
    last = Resident(model).adapter.blocks(model)[-1]
    with passed(Resident(model), going_on()) as states:
        found = states[1]
    last.register_forward_hook(lambda _, args, output: taken.append(output))
    for row, start in enumerate(STARTS_R.tolist()):
        context = CONTEXTS_BL[start][CONTEXT_MASK_BL[start].bool()]
        with torch.inference_mode():
            decoder(input_ids=torch.cat([context, ENDS_RL[row]])[None], use_cache=False)
        torch.testing.assert_close(found[row], taken[-1][0, -2:], rtol=1e-4, atol=1e-5)


def test_pieces_of_any_size_lie_in_memory_or_in_a_file(tmp_path: Path) -> None:
    pieces = [
        *going_on(),
        *(Piece({"input_ids": torch.arange(n * 7).view(n, 7)}) for n in (1, 3)),
    ]
    tokens = sum(piece.tokens.numel() for piece in pieces)
    size = tokens * 32 * 4
    model = TINY["llama"]()
    with passed(Resident(model), pieces, Spill(tmp_path / "file", room=size)) as states:
        assert not (tmp_path / "file").exists()
        kept = [states[number] for number in range(len(pieces))]
    with passed(Resident(model), pieces, Spill(tmp_path / "file", room=size - 1)) as states:
        assert (tmp_path / "file").exists()
        assert all(torch.equal(each, states[number]) for number, each in enumerate(kept))
    assert not (tmp_path / "file").exists()
    for piece, hidden in zip(pieces, kept, strict=True):
        assert hidden.shape == (*piece.tokens.shape, 32)


def test_a_bar_counts_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    piece = Piece({"input_ids": torch.arange(6)[None]})
    with passed(Resident(TINY["llama"]()), [piece], title="a text"):
        assert "a text: 2/2" in capsys.readouterr().err
    with passed(Resident(TINY["llama"]()), [piece]):
        assert capsys.readouterr().err == ""
