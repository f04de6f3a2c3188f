"""Model folders: written whole or not at all, opened as something that answers.

A folder is laid out as transformers wants it.  Even widths are transformers' own classes and need
nothing of ours.  Uneven widths come with one modeling file and an `auto_map` that names its
classes.  `lightstride.json` is the record of where a checkpoint comes from.
"""

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import lightstride
from lightstride.errors import ConfigError, ModelError
from lightstride.files import whole_folder
from lightstride.files.read import read_json
from lightstride.generate import Decoder, PlainDecoder
from lightstride.memory.attention import heads_of
from lightstride.memory.cache import Memory, full_plan
from lightstride.memory.entries import KvType
from lightstride.memory.plan_files import MemoryFile, check_belongs, read_plans
from lightstride.models.fingerprint import fingerprint
from lightstride.models.opening.explain import quiet
from lightstride.models.opening.load import (
    load_config,
    load_model,
    load_tokenizer,
    local_folder,
    locate,
)
from lightstride.models.opening.source import Resident, WeightSource
from lightstride.models.rebuild import empty_with_widths
from lightstride.models.saving import SHARD_BYTES, save_weights
from lightstride.models.uneven import experts
from lightstride.models.uneven import modeling as layered
from lightstride.models.uneven.register import LAYERED
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.decode.headed import HeadedDecoder
from lightstride.smash.hub import SmashModel
from lightstride.smash.model.config import SmashConfig
from lightstride.smash.model.eagle3 import Eagle3Head
from lightstride.smash.model.headed import (
    HEAD,
    HeadedConfig,
    check_fingerprint,
    open_head,
    read_headed,
    write_headed,
)

RECORD_NAME = "lightstride.json"
RECORD_FORMAT = 1
MODELING_NAME = "modeling_lightstride.py"
EXPERTS_NAME = "modeling_lightstride_experts.py"
AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")

Record = dict[str, object]


class TextFields(msgspec.Struct):
    """What a record says of one text that a checkpoint was made from."""

    documents: list[str] = []


class RecordFields(msgspec.Struct):
    """The parts of a record that are read again; others are for people."""

    data: dict[str, TextFields | str] = {}
    """By role; records of smashed models had a source and a hash instead."""
    ancestors: list[str] = []


def save_checkpoint(
    model: PreTrainedModel | WeightSource,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    record: Mapping[str, object] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model at the widths that its blocks have, with its tokenizer and a record.

    Weights are written as they come from the source, block by block.  Raises OutputError when the
    folder is not new or empty, or cannot be written; nothing that looks like a checkpoint is left
    then.
    """
    with whole_folder(Path(folder)) as partial, quiet():
        if isinstance(model, SmashModel):
            generation, model.generation_config = model.generation_config, GenerationConfig()
            try:
                model.save_pretrained(partial)
            finally:
                model.generation_config = generation
        else:
            source = model if isinstance(model, WeightSource) else Resident(model)
            generation = source.model.generation_config
            save_source(source, partial, shard_bytes)
        # Without the check in GenerationConfig.save_pretrained, which refuses published ones.
        generation.to_json_file(partial / "generation_config.json", use_diff=True)
        tokenizer.save_pretrained(partial)
        if record is not None:
            write_record(partial, record)


def save_source(source: WeightSource, folder: Path, shard_bytes: int) -> None:
    """Write config and weights of a source, with the modeling file that uneven widths need."""
    like = empty_with_widths(source.model, source.shapes)
    if isinstance(like.config, tuple(classes[0] for classes in LAYERED.values())):
        like.config.auto_map = auto_map(like.config)
        write_modeling(folder, like.config)
    like.config.dtype = str(source.model.dtype).removeprefix("torch.")
    like.config.architectures = [type(like).__name__]
    like.config.save_pretrained(folder)
    save_weights(source, like, folder, shard_bytes)


def write_modeling(folder: Path, config: PreTrainedConfig) -> None:
    """Write the modeling file of a layered config; experts need a second one, which imports it."""
    shutil.copyfile(layered.__file__, folder / MODELING_NAME)
    if modeling_name(config) == EXPERTS_NAME:
        text = Path(experts.__file__).read_text("utf-8")
        beside = text.replace(layered.__name__, "." + MODELING_NAME.removesuffix(".py"))
        (folder / EXPERTS_NAME).write_text(beside, "utf-8")


def modeling_name(config: PreTrainedConfig) -> str:
    """The modeling file that has a layered config's classes."""
    return EXPERTS_NAME if type(config).__module__ == experts.__name__ else MODELING_NAME


def auto_map(config: PreTrainedConfig) -> dict[str, str]:
    """Which class of the modeling file each of transformers' Auto classes should take."""
    base_type = config.model_type.removeprefix("lightstride_")
    stem = modeling_name(config).removesuffix(".py")
    return {
        auto_class: f"{stem}.{own.__name__}"
        for auto_class, own in zip(AUTO_CLASSES, LAYERED[base_type], strict=True)
    }


def ancestors_of(source: str | Path) -> tuple[str, ...]:
    """Fingerprints of the models that a folder's was made from; none for a model not ours."""
    return tuple(msgspec.convert(read_record(source), RecordFields).ancestors)


def is_saved(folder: str | Path) -> bool:
    """Whether a checkpoint of ours is there; a killed run leaves all of it or nothing."""
    return (Path(folder) / RECORD_NAME).exists()


def write_record(folder: Path, record: Mapping[str, object]) -> None:
    """Write a record, with its format and this package's version, into a folder in the making."""
    versioned = {"format": RECORD_FORMAT, "lightstride": lightstride.__version__, **record}
    text = json.dumps(versioned, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / RECORD_NAME).write_text(text + "\n", encoding="utf-8")


def read_record(folder: str | Path) -> Record:
    """The record in a folder; empty for a model that is not ours."""
    path = Path(folder) / RECORD_NAME
    if not path.is_file():
        return {}
    record = read_json(path, dict[str, object], ModelError, finite=True)
    try:
        msgspec.convert(record, RecordFields)
    except msgspec.ValidationError as error:
        raise ModelError(f"{path}: {error}") from error
    if record.get("format") != RECORD_FORMAT:
        raise ModelError(f"{path} is of another version; this one reads format {RECORD_FORMAT}")
    return record


def open_decoder(
    source: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    trust_remote_code: bool = False,
    kv: float | None = None,
    kv_type: KvType = "model",
) -> Decoder:
    """A decoder of a model: hub id, folder, .gguf file or built-in name.

    `kv` is the budget of one of its memory plans, None its own choice, 1 the full cache;
    ConfigError where it has no such plan.
    """
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    if is_smashed(source, trust_remote_code=trust_remote_code):
        smashed = SmashModel.from_pretrained(
            source, dtype=dtype, device=device, trust_remote_code=trust_remote_code
        )
        memory = memory_of(source, smashed.base, kv, kv_type)
        return SmashDecoder(smashed, tokenizer, memory=memory)
    if is_headed(source, trust_remote_code=trust_remote_code):
        base, head = open_headed(
            source, dtype=dtype, device=device, trust_remote_code=trust_remote_code
        )
        memory = memory_of(source, base, kv, kv_type)
        return HeadedDecoder(base, head, tokenizer, memory=memory)
    model = load_model(source, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    return PlainDecoder(model, tokenizer, memory=memory_of(source, model, kv, kv_type))


def open_headed(
    source: str, *, dtype: torch.dtype, device: str, trust_remote_code: bool
) -> tuple[PreTrainedModel, Eagle3Head]:
    """The base that a draft head's checkpoint names, and the head; ModelError for another base."""
    folder = local_folder(source)
    fields = read_headed(folder)
    base = load_model(fields.base, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    check_fingerprint(fields, base)
    return base, open_head(folder / HEAD, base)


def base_of(decoder: Decoder) -> PreTrainedModel:
    """The model whose forwards a decoder counts as steps: a smashed model's base."""
    return decoder.model.base if isinstance(decoder.model, SmashModel) else decoder.model


def plans_of(source: str, kv: float | None) -> MemoryFile | None:
    """A model's memory plans, if it has any; ConfigError where none is of this budget."""
    file = read_plans(Path(locate(source)))
    if file is None and kv not in (None, 1):
        raise ConfigError(
            f"--kv {kv:g} was given, and {source} has no memory plan; make one with: lightstride "
            f"smash {source} -o NEW --kv {kv:g}"
        )
    if file is not None:
        file.plan_for(kv)
    return file


def memory_of(
    source: str, model: PreTrainedModel, kv: float | None, kv_type: KvType
) -> Memory | None:
    """How the cache of a model is kept; None is the full cache in the model's precision."""
    file = plans_of(source, kv)
    plan = None if file is None else file.plan_for(kv)
    if plan is not None:
        check_belongs(plan, heads_of(model), fingerprint(model), source)
    elif kv_type == "model":
        return None
    scores = None if file is None else file.scores
    return Memory(plan or full_plan(model), kv_type, scores)


def with_budget(decoder: Decoder, source: str, kv: float, kv_type: KvType) -> Decoder:
    """A decoder of the same model, opened from `source`, that keeps its cache by another budget.

    ConfigError where the model has no such plan.
    """
    assert isinstance(decoder, SmashDecoder | HeadedDecoder | PlainDecoder)
    other = copy.copy(decoder)
    other.memory = memory_of(source, base_of(decoder), kv, kv_type)
    return other


def is_smashed(source: str, *, trust_remote_code: bool = False) -> bool:
    """Whether a source that could be read holds grafts and not a model of its own."""
    config = load_config(source, locate(source), trust_remote_code=trust_remote_code)
    return isinstance(config, SmashConfig)


def is_headed(source: str, *, trust_remote_code: bool = False) -> bool:
    """Whether a source that could be read is a draft head with the name of its base."""
    config = load_config(source, locate(source), trust_remote_code=trust_remote_code)
    return isinstance(config, HeadedConfig)


def save_headed(
    head: Eagle3Head,
    base: PreTrainedModel,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    record: Mapping[str, object],
) -> None:
    """Write a draft head with the name of its base, whose tokenizer comes along, and a record.

    Raises OutputError when the folder is not new or empty, or cannot be written.
    """
    assert base.generation_config is not None
    with whole_folder(Path(folder)) as partial, quiet():
        write_headed(partial, Path(folder), head, base, name)
        base.generation_config.to_json_file(partial / "generation_config.json", use_diff=True)
        tokenizer.save_pretrained(partial)
        write_record(partial, record)
