"""What all requests that let a model write have in common."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]


class Strict(BaseModel):
    """A model that takes exactly the fields it names, of exactly their types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class StreamOptions(Strict):
    """What a stream tells besides the answer."""

    include_usage: bool = False
    """Whether a last chunk tells the usage."""
    include_obfuscation: bool | None = None
    """OpenAI's padding of chunks; nothing is padded here."""
    include_steps: bool = False
    """Ours: every chunk is one step of the base model and tells its tokens and KV entries."""


class Sampling(Strict):
    """How an answer is drawn, and the fields that are this server's own."""

    model: Text
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    """0 and -1 draw from all tokens."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    user: str | None = None
    """Taken and not used, as `metadata` is."""
    metadata: dict[str, str] | None = None
    mode: Literal["lossless", "ar", "trust"] | None = None
    """Ours: how a smashed model decodes."""
    confidence: Annotated[float, Field(gt=0, le=1)] | None = None
    """Ours: how sure it must be to say one more token in a step."""
    kv: Annotated[float, Field(gt=0, le=1)] | None = None
    """Ours: the share of KV entries kept, one of those that the model has plans for."""
    exact: bool | None = None
    """Ours: whether it gets the same bits whatever is checked or answered beside it."""
    ignore_eos: bool = False
    """vLLM's: whether the answer goes on after an end token, as when speed is measured."""


class Writing(Sampling):
    """The fields of chat and completions that the newer responses do not have."""

    n: Annotated[int, Field(ge=1)] | None = None
    stop: Text | list[Text] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
