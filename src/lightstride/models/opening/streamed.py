"""A model whose weights stay on disk: each block is read when its turn comes, the next ahead.

The model is built of meta tensors (its buffers, which files do not have, are real).  A block's
parameters are replaced by what the shards hold, in the model's own type, and by meta tensors again
when the block is taken back: two blocks are in memory at once, the one at hand and the one that a
thread reads meanwhile.  Every weight is looked at once whether it is finite, when it is first read.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from lightstride.models.device import give_back_freed
from lightstride.models.families.adapter import Adapter
from lightstride.models.families.registry import adapter_for
from lightstride.models.fingerprint import sampled_fingerprint
from lightstride.models.opening.explain import errors_explained
from lightstride.models.opening.joined_shards import joined_shards
from lightstride.models.opening.load import (
    check_tensor_finite,
    check_weights,
    force_gqa_on_cpu,
    load_config,
    local_folder,
)
from lightstride.models.opening.shards import Shards
from lightstride.models.opening.source import WeightSource, closing_iterator
from lightstride.models.rebuild import config_to_cut
from lightstride.models.shapes import Site


@dataclass(frozen=True)
class Slot:
    """A place in a module where a parameter belongs."""

    module: nn.Module
    own_name: str
    name: str
    """Of the parameter in the whole model; that of the first place for one that has several."""

    def put(self, parameter: nn.Parameter) -> None:
        """Fill the place."""
        self.module._parameters[self.own_name] = parameter


def open_streamed(
    source: str,
    *,
    dtype: torch.dtype,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> "Streamed":
    """A model of a supported family whose weights are read from its folder block by block.

    Raises what `load_model` raises, except for weights that are NaN or infinite: those are found
    when they are read.
    """
    folder = local_folder(source)
    config = load_config(source, str(folder), trust_remote_code=trust_remote_code)
    adapter = adapter_for(config)
    shards = Shards.open(folder)
    with errors_explained(source, "config"):
        model = empty_model(config_to_cut(config), dtype, trust_remote_code=trust_remote_code)
        with suppress(OSError):
            model.generation_config = GenerationConfig.from_pretrained(folder)
    force_gqa_on_cpu()
    parts = {own: adapter.parts(own, config) for own, _ in model.named_parameters()}
    shards = joined_shards(source, shards, parts)
    return Streamed(source, model, adapter, shards, torch.device(device))


def empty_model(
    config: PreTrainedConfig, dtype: torch.dtype, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A model of this config with meta parameters and real buffers, tied where the config ties."""
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            deepcopy(config), dtype=dtype, trust_remote_code=trust_remote_code
        )
    assert isinstance(model, PreTrainedModel)
    model.tie_weights()
    model.train(False)
    return model


class Streamed(WeightSource):
    """Weights read from shards whenever they are needed."""

    streamed = True

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        adapter: Adapter,
        shards: Shards,
        device: torch.device,
    ) -> None:
        self.name, self.model, self.adapter = name, model, adapter
        self.shards, self.device = shards, device
        self.dtype = model.dtype
        self.meta = dict(model.named_parameters())
        self.names = {id(parameter): own for own, parameter in self.meta.items()}
        self.slots = [
            Slot(module, own, self.first_name(parameter))
            for module in model.modules()
            for own, parameter in module.named_parameters(recurse=False)
        ]
        self.files = self.find_files()
        self.seen: set[str] = set()
        for buffer_owner in model.modules():
            for own, buffer in buffer_owner.named_buffers(recurse=False):
                buffer_owner._buffers[own] = buffer.to(device)

    def find_files(self) -> dict[str, str]:
        """For every parameter the name that its shards have for it; ModelError for what lacks."""
        prefix = f"{self.model.base_model_prefix}."
        aliases: dict[str, list[str]] = {}
        for own, parameter in self.model.named_parameters(remove_duplicate=False):
            aliases.setdefault(self.first_name(parameter), []).append(own)
        found: dict[str, str] = {}
        for own, names in aliases.items():
            wanted = [
                *names,
                *(n.removeprefix(prefix) for n in names),
                *(prefix + n for n in names),
            ]
            there = [each for each in wanted if each in self.shards.places]
            found |= {own: there[0]} if there else {}
        places = self.shards.places
        check_weights(
            self.name,
            {
                "missing_keys": set(self.meta) - set(found),
                "unexpected_keys": {
                    each for each in set(places) - set(found.values()) if "inv_freq" not in each
                },
                "mismatched_keys": {
                    (own, places[file].shape, self.meta[own].shape)
                    for own, file in found.items()
                    if places[file].shape != self.meta[own].shape
                },
            },
        )
        return found

    def first_name(self, parameter: Tensor) -> str:
        """The name that a parameter, which may be in several places, goes by."""
        return self.names[id(parameter)]

    @contextmanager
    def blocks(self) -> Iterator[Iterator[nn.Module]]:
        with (
            ThreadPoolExecutor(1, "lightstride-reader") as reader,
            closing_iterator(self._in_turn(reader)) as blocks,
        ):
            yield blocks

    def _in_turn(self, reader: ThreadPoolExecutor) -> Iterator[nn.Module]:
        blocks = self.adapter.blocks(self.model)
        slots = [self.slots_in(block) for block in blocks]
        ahead: Future[dict[str, Tensor]] = reader.submit(self.read, slots[0])
        for index, block in enumerate(blocks):
            values = ahead.result()
            if index + 1 < len(blocks):
                ahead = reader.submit(self.read, slots[index + 1])
            with self.filled(slots[index], values):
                del values
                yield block
            give_back_freed()

    def slots_in(self, module: nn.Module) -> list[Slot]:
        """The places of a module's parameters."""
        inside = {id(each) for each in module.modules()}
        return [slot for slot in self.slots if id(slot.module) in inside]

    def read(self, slots: list[Slot]) -> dict[str, Tensor]:
        """The parameters of these places, on the device."""
        return {name: self.tensor(name) for name in dict.fromkeys(slot.name for slot in slots)}

    def tensor(self, name: str) -> Tensor:
        values = self.shards.read(self.files[name]).to(self.device, self.dtype)
        if name not in self.seen:
            check_tensor_finite(self.name, name, values)
            self.seen.add(name)
        return values

    @contextmanager
    def filled(self, slots: list[Slot], values: dict[str, Tensor]) -> Iterator[None]:
        """Inside, the places hold these values; afterwards meta tensors again."""
        parameters = {n: nn.Parameter(v, requires_grad=False) for n, v in values.items()}
        values.clear()
        for slot in slots:
            slot.put(parameters[slot.name])
        del parameters
        try:
            yield
        finally:
            for slot in slots:
                slot.put(self.meta[slot.name])

    def outside(self, *skipped: nn.Module) -> list[Slot]:
        """The places that are in no block, nor in these modules."""
        modules = [self.adapter.blocks(self.model), *skipped]
        inside = {id(each) for module in modules for each in module.modules()}
        return [slot for slot in self.slots if id(slot.module) not in inside]

    @contextmanager
    def embedding(self) -> Iterator[None]:
        head = self.model.get_output_embeddings()
        slots = self.outside(head)
        with self.filled(slots, self.read(slots)):
            yield

    @contextmanager
    def head(self) -> Iterator[None]:
        with self.without_embeddings():
            yield

    @contextmanager
    def outside_blocks(self) -> Iterator[None]:
        with self.without_embeddings(self.model.get_output_embeddings()):
            yield

    @contextmanager
    def without_embeddings(self, *skipped: nn.Module) -> Iterator[None]:
        """Inside, all is there but blocks and these; embeddings are zero."""
        embeddings = self.model.get_input_embeddings()
        assert embeddings is not None
        slots = self.outside(embeddings, *skipped)
        with self.filled(slots, self.read(slots)), zero_embeddings(embeddings, self):
            yield

    def dense_outputs(self) -> Mapping[Site, Tensor]:
        return OutputsOnDisk(self)

    def fingerprint(self) -> str:
        shapes = {name: parameter.shape for name, parameter in self.meta.items()}

        def sample(name: str, picked_N: Tensor) -> Tensor:
            return self.shards.sample(self.files[name], picked_N).to(self.dtype)

        return sampled_fingerprint(shapes, sample)


@contextmanager
def zero_embeddings(module: nn.Module, source: Streamed) -> Iterator[None]:
    """Inside, embeddings of whatever tokens are zeros of the right size: no block will see them."""
    size = source.model.config.hidden_size

    def zeros(tokens: Tensor, *_: object, **__: object) -> Tensor:
        return torch.zeros(*tokens.shape, size, dtype=source.dtype, device=source.device)

    module.forward = zeros
    try:
        yield
    finally:
        del module.forward


class OutputsOnDisk(Mapping[Site, Tensor]):
    """Output weights of every site, read when they are asked for."""

    def __init__(self, source: Streamed) -> None:
        self.source = source
        blocks = source.adapter.blocks(source.model)
        self.names = {
            site: source.first_name(
                source.adapter.output_layer(blocks[site.block], site.kind).get_parameter("weight")
            )
            for site in source.geometry.sites
        }

    def __getitem__(self, site: Site) -> Tensor:
        return self.source.tensor(self.names[site])

    def __iter__(self) -> Iterator[Site]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
