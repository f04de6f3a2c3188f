"""Measure the inputs of every site's output weights, while the model streams by.

At every site, in the order of computation, the Gram matrix H is summed over all tokens,

    H = sum_t w_t x_t x_t^T,        x_t the inputs (I,) of the site's output weights,

(for an FFN of experts one for each, `site_sums.py`) and given to a callback, which returns the cut
site.  The stream goes on with the cut's outputs, so that the next site is measured on the inputs
that it will really have.

A token's weight is w_t = 1, or

    w_t = 1 / mean(r_t^2),          r_t the residual stream after the site,

with r_t computed by the dense site on this stream's inputs.  Errors then count relative to r_t, as
the norms downstream make them count.  The drift is

    e_t = r_t of the dense stream - r_t of this stream;

refitting the output weights W to the targets W x_t + alpha e_t lets a site undo the part alpha of
the error that the cuts before it left.  Both need blocks that add their sites' outputs to the
residual stream; others (Gemma's normalize them first) have w_t = 1 and no drift.

Paper: Tyr-the-Pruner (https://arxiv.org/abs/2503.09657), section 3.3, algorithm 2.  We
differ: attention is cut before the FFN's inputs are taken, as the paper says and its
published code does not.

Sums are taken over fixed chunks of fixed shards, so they do not depend on how many ranks there
are, nor on the batch size as far as the model's own products do not (see `distributed.py`).

Shapes: N windows, L tokens each, I inputs of output weights, O outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from lightstride.distributed import (
    NUM_SHARDS,
    broadcast_object,
    broadcast_tensor,
    owned_shards,
    pieces,
    rank,
    world_size,
)
from lightstride.models.activations import ActivationStore, activation_store
from lightstride.models.block_calls import Call, embed
from lightstride.models.families.adapter import (
    HEAD_NORMS,
    OUTPUT_NAME,
    Adapter,
    SiteWeights,
)
from lightstride.models.opening.source import WeightSource
from lightstride.models.shapes import KINDS, Geometry, Kind, Site
from lightstride.progress import Bar
from lightstride.prune.cut.materialize import masked_inputs, masked_weights
from lightstride.prune.cut.refit import CutSite
from lightstride.prune.cut.site_sums import AllSums, ShardSums, SiteInputs, SiteSums
from lightstride.prune.cut.stream import OutputWeights, Stream

TINY = 1e-12
CHUNK_TOKENS = 4096
"""Tokens whose products are added up in one go."""


@dataclass(frozen=True)
class SiteStatistics:
    """Sums over all tokens at one site, and the site's weights."""

    gram: Tensor
    """Sum of w x x^T over all tokens, fp32, not normalized: (I, I), of experts (E, W, W)."""
    num_tokens: int
    weights: SiteWeights
    """All weights of the dense site, in the model's own type."""
    drift_IO: Tensor | None = None
    """Sum of w x e^T over all tokens, fp32, if asked for and the block is additive."""
    tokens_E: Tensor | None = None
    """Tokens that each expert was sent; None without experts."""


OnSite = Callable[[Site, SiteStatistics], CutSite | None]


@dataclass(frozen=True)
class ShardLayout:
    """This rank's windows, cut into shards, these into chunks, these into batches."""

    num_shards: int
    """Shards of all ranks."""
    windows: slice
    """This rank's windows among all."""
    chunks: Mapping[int, Sequence[Sequence[slice]]]
    """For each shard of this rank its chunks, for each its batches of this rank's windows."""

    @classmethod
    def of(cls, num_windows: int, length: int, batch_size: int, num_shards: int) -> "ShardLayout":
        """The layout on this rank; shards and chunks do not depend on ranks or batch size."""
        num_shards = min(num_shards, num_windows)
        mine = owned_shards(num_shards)
        shards = pieces(range(num_windows), num_shards)
        start = shards[mine.start].start
        step = max(1, CHUNK_TOKENS // length)
        chunks = {
            shard: [
                batches_of(shards[shard][first : first + step], batch_size, start)
                for first in range(0, len(shards[shard]), step)
            ]
            for shard in mine
        }
        return cls(num_shards, slice(start, shards[mine[-1]].stop), chunks)

    @property
    def batches(self) -> list[slice]:
        """All batches, in order."""
        return [batch for chunks in self.chunks.values() for chunk in chunks for batch in chunk]


def batches_of(windows: range, batch_size: int, start: int) -> list[slice]:
    """Consecutive windows in batches, counted from `start`."""
    firsts = windows[::batch_size]
    return [slice(f - start, min(f + batch_size, windows.stop) - start) for f in firsts]


@dataclass(frozen=True)
class StreamPair:
    """The stream that is measured and, to see how far it drifts, the dense model's own."""

    pruned: Stream
    dense: Stream | None
    layout: ShardLayout
    weigh_tokens: bool

    @property
    def all(self) -> list[Stream]:
        return [self.pruned] if self.dense is None else [self.pruned, self.dense]

    def measure(
        self,
        block: nn.Module,
        kind: Kind,
        output: OutputWeights,
        calls: Mapping[int, Call],
        inputs: SiteInputs,
    ) -> SiteSums | None:
        """Bring all streams to a site; its sums on rank 0, None elsewhere."""
        with_drift = self.dense is not None and self.pruned.additive
        num_outputs = output.weight_OI.shape[0] if with_drift else 0
        total = AllSums(self.layout.num_shards, inputs)
        for shard, chunks in self.layout.chunks.items():
            sums = ShardSums(inputs, num_outputs, output.weight_OI.device)
            for chunk in chunks:
                seen = [self._see(block, kind, output, batch, calls) for batch in chunk]
                sums.add(joined([rows for rows, _ in seen]), joined([errors for _, errors in seen]))
            total.add(shard, sums)
        return total.total()

    def _see(
        self,
        block: nn.Module,
        kind: Kind,
        output: OutputWeights,
        batch: slice,
        calls: Mapping[int, Call],
    ) -> tuple[Tensor, Tensor]:
        """Inputs x (T, I) of the site and errors e (T, O), both times the root of w."""
        call = calls[batch.stop - batch.start]
        rows_TI = self.pruned.run_to_site(block, kind, batch, call).flatten(0, 1)
        dense_BLO = None
        if self.dense is not None:
            dense_BLO = self.dense.step(block, kind, output, batch, call)
        errors_TO = rows_TI.new_zeros(0, 0)
        if not self.pruned.additive:
            return rows_TI, errors_TO
        root_T1: Tensor | float = 1.0
        if self.weigh_tokens or dense_BLO is not None:
            after_TO = self.pruned.after(block, kind, output, batch, call).float().flatten(0, 1)
        if self.weigh_tokens:
            root_T1 = (after_TO.square().mean(1, keepdim=True) + TINY).rsqrt()
            rows_TI = (rows_TI * root_T1).to(rows_TI)
        if dense_BLO is not None:
            errors_TO = ((dense_BLO.flatten(0, 1) - after_TO) * root_T1).to(rows_TI)
        return rows_TI, errors_TO

    def skip_site(
        self, block: nn.Module, kind: Kind, output: OutputWeights, calls: Mapping[int, Call]
    ) -> None:
        """Bring all streams to a site without measuring anything."""
        for batch in self.layout.batches:
            call = calls[batch.stop - batch.start]
            self.pruned.run_to_site(block, kind, batch, call)
            if self.dense is not None:
                self.dense.step(block, kind, output, batch, call)

    def rerun_to_site(self, block: nn.Module, kind: Kind, calls: Mapping[int, Call]) -> None:
        """Take the inputs of a site anew, now that a cut has changed the weights before them."""
        for batch in self.layout.batches:
            self.pruned.run_to_site(block, kind, batch, calls[batch.stop - batch.start])

    def set_site_output(self, kind: Kind, output: OutputWeights, dense: OutputWeights) -> None:
        """Let a site answer by `output` from now on, and by `dense` in the dense model."""
        self.pruned.set_site_output(kind, output, self.layout.batches)
        if self.dense is not None:
            self.dense.set_site_output(kind, dense, self.layout.batches, stepped=True)

    def enter(self, block: nn.Module, calls: Mapping[int, Call]) -> None:
        """Let all streams begin a block."""
        batch = self.layout.batches[0]
        for stream in self.all:
            stream.enter(block, batch, calls[batch.stop - batch.start])

    def leave(self, block: nn.Module, calls: Mapping[int, Call]) -> None:
        """Bring all streams to the end of a block."""
        for stream in self.all:
            for batch in self.layout.batches:
                stream.leave(block, batch, calls[batch.stop - batch.start])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """All rows in one tensor, not copied if they are."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def open_streams(
    source: WeightSource,
    tokens_NL: Tensor,
    layout: ShardLayout,
    shelf: ActivationStore,
    *,
    weigh_tokens: bool,
    drift: bool,
    use_additivity: bool,
) -> tuple[StreamPair, Mapping[int, Sequence[Call]]]:
    """The streams before the first block, and for each batch size how the blocks are called."""
    mine_NL = tokens_NL[layout.windows]
    hidden_NLD, calls = embed(source, mine_NL, layout.batches, shelf)
    adapter, device = source.adapter, source.device
    dense = None
    if drift:
        copy_NLD = shelf.room(*hidden_NLD.shape, dtype=hidden_NLD.dtype)
        for windows in layout.batches:
            copy_NLD[windows] = hidden_NLD[windows]
        dense = Stream(copy_NLD, adapter, shelf, device, use_additivity=use_additivity)
    pruned = Stream(hidden_NLD, adapter, shelf, device, use_additivity=use_additivity)
    return StreamPair(pruned, dense, layout, weigh_tokens), calls


def same_on_all_ranks(
    weights: SiteWeights, site: Site, geometry: Geometry, level: CutSite | None
) -> OutputWeights:
    """The output weights of a site at the cut that rank 0 gives, on every rank."""
    dense = OutputWeights.of(weights, site.kind)
    if level is not None:
        weights = masked_weights(weights, level, geometry.shape(site), geometry.head_dim)
    mine = OutputWeights.of(weights, site.kind)
    is_cut, has_bias = broadcast_object((level is not None, mine.bias_O is not None))
    if not is_cut or world_size() == 1:
        return mine
    if rank() > 0:
        bias_O = dense.weight_OI.new_empty(dense.weight_OI.shape[0]) if has_bias else None
        mine = OutputWeights(torch.empty_like(dense.weight_OI), bias_O)
    bias_O = None if mine.bias_O is None else broadcast_tensor(mine.bias_O)
    return OutputWeights(broadcast_tensor(mine.weight_OI), bias_O)


def inputs_on_all_ranks(
    weights: SiteWeights, site: Site, geometry: Geometry, level: CutSite | None
) -> SiteWeights:
    """The weights that a cut changes before a site's output weights, masked: norms, routers.

    On every rank, at the level that rank 0 gives; nothing for most families.
    """
    if not {*HEAD_NORMS, "router"} & weights.keys():
        return {}
    mine: SiteWeights = {}
    if level is not None:
        mine = masked_inputs(weights, level.kept, geometry.shape(site), geometry.head_dim)
    shapes = broadcast_object({name: each.shape for name, each in sorted(mine.items())})
    like = weights[OUTPUT_NAME[site.kind]]
    return {
        name: broadcast_tensor(mine.get(name, like.new_empty(shape)))
        for name, shape in shapes.items()
    }


@dataclass(frozen=True)
class SiteLoop:
    """The loop's constants: how a site is measured, cut and passed."""

    adapter: Adapter
    geometry: Geometry
    visit: OnSite
    finished: Mapping[Site, CutSite | None]
    known: frozenset[Site]
    """The finished sites, on every rank."""
    num_tokens: int

    def inputs_of(self, site: Site) -> SiteInputs:
        """How the inputs of a site are shared out."""
        geometry = self.geometry
        num_inputs = geometry.num_inputs(geometry.shape(site))
        return SiteInputs(num_inputs, len(geometry.experts(site)), geometry.experts_per_token)

    def pass_site(
        self, streams: StreamPair, site: Site, block: nn.Module, calls: Mapping[int, Call]
    ) -> None:
        """Measure and visit a site unless it is finished, and let the streams pass it."""
        weights = self.adapter.read(block, site.kind)
        output = OutputWeights.of(weights, site.kind)
        if site in self.known:
            streams.skip_site(block, site.kind, output, calls)
            level = self.finished.get(site)
        else:
            sums = streams.measure(block, site.kind, output, calls, self.inputs_of(site))
            level = None
            if sums is not None:
                statistics = SiteStatistics(
                    sums.gram, self.num_tokens, weights, sums.drift_IO, sums.tokens_E
                )
                level = self.visit(site, statistics)
        answer = same_on_all_ranks(weights, site, self.geometry, level)
        masked = inputs_on_all_ranks(weights, site, self.geometry, level)
        if masked:
            shape = self.geometry.shape(site)
            self.adapter.write(block, site.kind, weights | masked, shape)
            streams.rerun_to_site(block, site.kind, calls)
            self.adapter.write(block, site.kind, weights, shape)
        streams.set_site_output(site.kind, answer, output)


@torch.no_grad()
def stream_blocks(
    source: WeightSource,
    tokens_NL: Tensor,
    visit: OnSite,
    *,
    finished: Mapping[Site, CutSite | None] = MappingProxyType({}),
    weigh_tokens: bool = False,
    drift: bool = False,
    batch_size: int = 8,
    num_shards: int = NUM_SHARDS,
    spill: Path | None = None,
    use_additivity: bool = True,
    progress: bool = False,
) -> None:
    """Call `visit` with the statistics of every site, in order; go on with the cut it returns.

    None stands for the site as it is.  `weigh_tokens` counts tokens by their weights w, else all
    alike; `drift` adds the drift to the statistics, and runs the dense model along.  Rank 0 alone
    calls `visit` and sends its answer to the others.  Sites that are `finished` (on rank 0) are
    neither measured nor visited.  `spill` is a folder for activations that memory is too small for.
    Without `use_additivity` additive blocks are run like others, for tests.  The model stays as
    it is.
    """
    geometry, adapter = source.geometry, source.adapter
    num_windows, length = tokens_NL.shape
    layout = ShardLayout.of(num_windows, length, batch_size, num_shards)
    known = frozenset(map(Site.parse, broadcast_object([str(site) for site in finished])))
    loop = SiteLoop(adapter, geometry, visit, finished, known, tokens_NL.numel())
    with ExitStack() as stack:
        shelf = stack.enter_context(activation_store(spill))
        streams, calls = open_streams(
            source,
            tokens_NL,
            layout,
            shelf,
            weigh_tokens=weigh_tokens,
            drift=drift,
            use_additivity=use_additivity,
        )
        bar = stack.enter_context(
            Bar(total=len(geometry.sites), unit="site", disable=not progress or rank() > 0)
        )
        for index, block in enumerate(stack.enter_context(source.blocks())):
            here = {size: each[index].to(source.device) for size, each in calls.items()}
            streams.enter(block, here)
            if index == 0 and not streams.pruned.additive:
                streams = replace(streams, dense=None)
            for kind in KINDS:
                loop.pass_site(streams, Site(index, kind), block, here)
                bar.update()
            streams.leave(block, here)
