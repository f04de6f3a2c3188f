"""Where a slot stands."""

import torch

from lightstride.generate.batch.masks import slot_positions


def test_positions_jump_to_the_last_token_and_restart_with_documents() -> None:
    lengths = torch.tensor([[0, 1, 1, 3, 1, 2], [1, 1, 1, 1, 4, 0]])
    assert slot_positions(lengths).tolist() == [[-1, 0, 1, 4, 5, 7], [0, 1, 2, 3, 7, 7]]
    packed = torch.tensor([[1, 1, 3, 1, 2, 2, 1]])
    documents = torch.tensor([[4, 4, 4, 5, 5, 6, 6]])
    assert slot_positions(packed, documents_BS=documents).tolist() == [[0, 1, 4, 0, 2, 1, 2]]
    before = torch.tensor([7, 4])
    assert slot_positions(torch.tensor([[3], [1]]), before).tolist() == [[10], [5]]
