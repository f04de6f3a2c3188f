"""What transformers' `generate` prepares, as hooks of our decoders.

Shapes: B rows, L columns of the padded prompts, V vocabulary.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from lightstride.generate.rows import Row, Stopper
from lightstride.generate.sampler import Processor


def unpadded(input_ids_BL: Tensor, mask_BL: Tensor | None) -> list[list[int]]:
    """Prompts as lists, padding on the left taken off."""
    if mask_BL is None:
        rows: list[list[int]] = input_ids_BL.tolist()
        return rows
    return [ids[mask.bool()].tolist() for ids, mask in zip(input_ids_BL, mask_BL, strict=True)]


def filler_token(config: GenerationConfig) -> int:
    """What to put behind answers that ended early."""
    named = config.pad_token_id if config.pad_token_id is not None else config.eos_token_id
    token = named[0] if isinstance(named, list) else named
    return token if isinstance(token, int) else 0


def processing(processors: LogitsProcessorList, input_ids_BL: Tensor) -> Processor | None:
    """The processors as our hook: they see the row's prompt and answer up to the token at hand."""
    if not processors:
        return None

    def process(row: Row, tokens: Sequence[int], logits_V: Tensor) -> Tensor:
        answer = torch.tensor([list(tokens)], dtype=torch.long, device=input_ids_BL.device)
        history = torch.cat([input_ids_BL[row.index : row.index + 1], answer], dim=-1)
        scores = processors(cast(LongTensor, history), cast(FloatTensor, logits_V[None].float()))
        assert isinstance(scores, Tensor)
        return scores[0]

    return process


def stopping(
    criteria: StoppingCriteriaList, input_ids_BL: Tensor, config: GenerationConfig
) -> Stopper | None:
    """The criteria as our hook; length and end tokens are the decoder's own business.

    They see all rows at once, answers flush right behind the prompts, after every token.
    """
    own = (MaxLengthCriteria, EosTokenCriteria)
    others = StoppingCriteriaList([c for c in criteria if not isinstance(c, own)])
    if not others:
        return None
    filler = filler_token(config)

    def stop(answers: Sequence[Sequence[int]]) -> list[bool]:
        longest = max(map(len, answers))
        flush = [[*[filler] * (longest - len(answer)), *answer] for answer in answers]
        rows = torch.cat([input_ids_BL, torch.tensor(flush).to(input_ids_BL)], dim=-1)
        ended: list[bool] = others(rows, None).tolist()
        return ended

    return stop
