"""A model that is read block by block, as something that scores texts and says none."""

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.generate import Decoder
from lightstride.models.opening.source import WeightSource
from lightstride.models.passes import Spill


@dataclass(frozen=True)
class BlockReader:
    """Stands where a decoder does."""

    source: WeightSource
    tokenizer: PreTrainedTokenizerBase
    spill: Spill | None = None
    """Where hidden states go that memory has no room for."""

    @property
    def model(self) -> PreTrainedModel:
        """All modules, without their weights."""
        return self.source.model


def weights_of(
    reader: Decoder | BlockReader,
) -> tuple[PreTrainedModel | WeightSource, Spill | None]:
    """What is measured, and where its hidden states may go."""
    if isinstance(reader, BlockReader):
        return reader.source, reader.spill
    return reader.model, None
