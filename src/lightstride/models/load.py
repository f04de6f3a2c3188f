"""Opening models and tokenizers: a hub id, a local folder, a .gguf file, or a built-in name."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightstride.errors import ModelError, NetworkError
from lightstride.models.builtin import BUILT_IN, gguf_file
from lightstride.models.families import adapter_for
from lightstride.models.gguf import converted

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
OFFLINE = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError)


def load_model(
    source: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A model of a supported family, in evaluation mode.

    Raises NetworkError without a network for a hub id, UnknownFamilyError, and ModelError when
    weights are missing, damaged, of other sizes than the config says, NaN or infinite.
    """
    place = locate(source)
    with reading(source):
        config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    adapter_for(config)
    with reading(source):
        opened = AutoModelForCausalLM.from_pretrained(
            place,
            config=config,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    model, report = cast("tuple[PreTrainedModel, Mapping[str, set[str]]]", opened)
    check_complete(source, report)
    check_finite(source, model)
    cast(nn.Module, model).to(device)
    model.train(False)
    return model


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; raises ModelError when it does not fit the model's vocabulary."""
    place = locate(source)
    with reading(source):
        tokenizer = AutoTokenizer.from_pretrained(place)
        config = AutoConfig.from_pretrained(place)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    check_tokenizer(tokenizer, config)
    return tokenizer


def locate(source: str) -> str:
    """What transformers can open: a folder (made now for a .gguf or built-in model) or a hub id."""
    if source in BUILT_IN:
        return str(converted(gguf_file(source)))
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return str(converted(path))
    if path.is_file():
        raise ModelError(f"{source} is a file; give a folder, a .gguf file, or a hub id")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{source} is no model folder: it has no config.json")
        return str(path)
    if not HUB_ID.fullmatch(source) or path.suffix == ".gguf":
        raise ModelError(f"there is no file or folder {source}")
    return source


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Turns what transformers raises about a source into one line of ours."""
    try:
        yield
    except SafetensorError as error:
        raise ModelError(f"the weights of {source} are truncated or damaged: {error}") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise explained(source, error) from error


def explained(source: str, error: Exception) -> ModelError | NetworkError:
    """Our error for what transformers raised about a source."""
    causes = list(chain(error))
    if any(isinstance(cause, GatedRepoError | RepositoryNotFoundError) for cause in causes):
        return ModelError(f"{source} is no local folder, and no model on the hub that you may read")
    if any(isinstance(cause, OFFLINE) for cause in causes) and not Path(source).exists():
        names = ", ".join(BUILT_IN)
        return NetworkError(
            f"{source} is no local folder, and the hub cannot be reached; without a network give"
            f" a folder, a .gguf file, or a built-in model ({names})"
        )
    return ModelError(f"{source} cannot be read: {str(error).strip().splitlines()[0]}")


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it came from, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def check_complete(source: str, report: Mapping[str, set[str]]) -> None:
    """Raise ModelError when weights are missing, of other sizes, or have no place in the model."""
    for problem, names in (
        ("lacks the weights", report["missing_keys"]),
        ("has weights of other sizes than config.json says:", report["mismatched_keys"]),
    ):
        if names:
            first = min(str(name) for name in names)
            raise ModelError(f"{source} {problem} {first} (and {len(names) - 1} more)")


def check_finite(source: str, model: PreTrainedModel) -> None:
    """Raise ModelError when a weight is NaN or infinite."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ModelError(f"{source} has NaN or infinite weights, first in {name}")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Raise ModelError when the tokenizer may say ids that the model has no embedding for.

    Added tokens may lie outside, as Gemma's image token does, unless they are the ones put into
    every text.
    """
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    highest = max([tokenizer.vocab_size - 1, *(token for token in special if token is not None)])
    if highest >= config.vocab_size:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path} has ids up to {highest}, but the model's"
            f" vocabulary ends at {config.vocab_size - 1}"
        )
