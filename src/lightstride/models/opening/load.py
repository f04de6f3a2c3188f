"""Opening models and tokenizers: a hub id, a local folder, a .gguf file, or a built-in name."""

import os
import re
from pathlib import Path
from typing import TypedDict, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from huggingface_hub import constants, snapshot_download
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightstride.errors import ModelError
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.builtin import BUILT_IN, GRAFTS, gguf_source, graft_folder
from lightstride.models.opening.conversions import Source
from lightstride.models.opening.explain import errors_explained
from lightstride.models.opening.gate import check_folder, check_weight_files
from lightstride.models.opening.gguf import gguf_as_folder
from lightstride.models.rebuild import config_to_cut, rebuilt

MODEL_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
FILES = ["*.json", "*.safetensors", "*.jinja", "*.py"]
"""Of a hub repository, those that a checkpoint is made of."""
PROBE = "a\ue000"
"""A text with a character that is in no vocabulary, so that the unknown token must be there."""
HUB_TIMEOUT = 5.0
"""Seconds to wait for the hub before taking it for unreachable."""


class LoadReport(TypedDict):
    """Transformers' report of the weights it found."""

    missing_keys: set[str]
    unexpected_keys: set[str]
    mismatched_keys: set[tuple[str, torch.Size, torch.Size]]


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
    config = load_config(source, place, trust_remote_code=trust_remote_code)
    adapter_for(config)
    local = is_local(place)
    if Path(place).is_dir():
        check_weight_files(Path(place))
    with errors_explained(source, "weights"):
        opened = AutoModelForCausalLM.from_pretrained(
            place,
            config=config,
            dtype=dtype,
            local_files_only=local,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model, report = cast("tuple[PreTrainedModel, LoadReport]", opened)
    check_weights(source, report)
    check_finite(source, model)
    if config_to_cut(config) is not config:
        model = rebuilt(model)
    force_gqa_on_cpu()
    cast(nn.Module, model).to(device)
    model.train(False)
    return model


def force_gqa_on_cpu() -> None:
    """Let masked attention on a CPU read each KV head once, not copied for each of its queries.

    The same but for rounding, and 1.2 to 6 times faster; with CUDA transformers' own choice stands.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")


def load_config(source: str, place: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a source that `locate` found; a local folder is looked through first."""
    if Path(place).is_dir():
        check_folder(Path(place), trust_remote_code=trust_remote_code)
    with errors_explained(source, "config"):
        config = AutoConfig.from_pretrained(
            place, local_files_only=is_local(place), trust_remote_code=trust_remote_code
        )
    assert isinstance(config, PreTrainedConfig)
    return config


def load_tokenizer(source: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, of built-in grafts that of their base.

    Raises ModelError when it does not fit the model's vocabulary.
    """
    place = locate(source)
    if source in GRAFTS:
        place = locate(GRAFTS[source])
    config = load_config(source, place, trust_remote_code=trust_remote_code)
    with errors_explained(source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            place, local_files_only=is_local(place), trust_remote_code=trust_remote_code
        )
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        check_tokenizer(tokenizer, config)
        tokenizer.encode(PROBE, add_special_tokens=True)  # settings of odd types show here
    return tokenizer


def locate(source: str) -> str:
    """A folder (made now for a .gguf or built-in model) or hub id that transformers can open."""
    if source in BUILT_IN:
        return str(gguf_as_folder(gguf_source(source)))
    if source in GRAFTS:
        return str(graft_folder(source))
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return str(gguf_as_folder(Source(name=path.stem, parts=(path,))))
    if path.is_file():
        raise ModelError(f"{source} is a file; give a folder, a .gguf file, or a hub id")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{source} is no model folder: it has no config.json")
        return str(path)
    if not MODEL_ID.fullmatch(source) or path.suffix == ".gguf":
        raise ModelError(f"there is no file or folder {source}")
    return source


def local_folder(source: str) -> Path:
    """The folder of a model, downloaded where the source is a hub id."""
    place = locate(source)
    if Path(place).is_dir():
        return Path(place)
    with errors_explained(source, "checkpoint"):
        return Path(snapshot_download(place, allow_patterns=FILES))


def is_local(place: str) -> bool:
    """Whether only files of this machine can be read: a folder, or a hub id without a network.

    Asked once and briefly, since the hub's own client would try for half a minute.
    """
    if Path(place).is_dir() or constants.HF_HUB_OFFLINE:
        return True
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT).close()
    except HTTPError:
        return False
    except OSError:
        return True
    return False


def check_weights(source: str, report: LoadReport) -> None:
    """Raise ModelError when weights are missing, of other sizes, or more than the blocks hold."""
    mismatched = {name[0] for name in report["mismatched_keys"]}
    surplus = {name for name in report["unexpected_keys"] if ".layers." in name}
    for problem, names in (
        ("lacks the weights", report["missing_keys"]),
        ("has, in other sizes than its config.json says, the weights", mismatched),
        ("has weights that its config.json has no place for:", surplus),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(f"{source} {problem} {min(names)}{more}")


def check_finite(source: str, model: PreTrainedModel) -> None:
    """Raise ModelError when a weight is NaN or infinite."""
    for name, parameter in model.named_parameters():
        check_tensor_finite(source, name, parameter)


def check_tensor_finite(source: str, name: str, values: Tensor) -> None:
    """Raise ModelError when one of a weight's values is NaN or infinite."""
    # Least and largest are NaN if any value is, and take no copy of the tensor.
    if values.numel() and not all(each.isfinite() for each in values.aminmax()):
        raise ModelError(f"{source} has NaN or infinite weights, first in {name}")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Raise ModelError when the tokenizer may give ids that the model has no embedding for.

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
