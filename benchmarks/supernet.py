"""Measure statistics and local pruning: time, disk, memory, and the loss of every site.

    python benchmarks/supernet.py --model smollm2-135m --text wiki.valid.raw.gz --json

Protocol: windows of 512 tokens at seeded random offsets of one text, tokenized whole without
special tokens.  With --compare the losses of some sites are set beside those of the published
way (`tyr_loss.py`) on the same Gram matrices.  The last line of stdout is one JSON document.
"""

import argparse
import gzip
import resource
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightstride.models.families.adapter import OUTPUT_NAME, Adapter
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.models.opening.source import Resident
from lightstride.models.shapes import AttentionShape, FFNShape, Geometry, Shape, Site, shape_text
from lightstride.prune.cut import site_levels, site_sums, statistics, stream, supernet
from lightstride.prune.cut.refit import prune_site
from output import add_output, finish
from tyr_loss import published_loss

Seconds = dict[str, float]


def random_windows(
    tokenizer: PreTrainedTokenizerBase, path: Path, num_tokens: int, window: int, seed: int
) -> Tensor:
    """Windows at random offsets of a text (N, L)."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        tokens = torch.tensor(tokenizer(file.read(), add_special_tokens=False)["input_ids"])
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(tokens) - window, (num_tokens // window,), generator=generator)
    return torch.stack([tokens[start : start + window] for start in starts.tolist()])


def shapes_of(dense: Shape, num_levels: int) -> list[Shape]:
    """Equal steps from the dense width down and a floor of 32 channels, or all attentions."""
    if isinstance(dense, FFNShape):
        step = dense.num_channels // (num_levels - 1)
        widths = [step * count for count in range(1, num_levels)]
        return [FFNShape(width) for width in [32, *widths]]
    return [
        AttentionShape(groups, queries)
        for groups in range(1, dense.num_kv_heads + 1)
        for queries in range(1, dense.queries_per_group + 1)
    ]


def timed(owner: object, name: str, label: str, seconds: Seconds) -> None:
    """Let a function of a module or class note the time it takes under a label."""
    function: Callable[..., object] = getattr(owner, name)

    def run(*args: object, **kwargs: object) -> object:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[label] += time.perf_counter() - start

    setattr(owner, name, run)


def watch() -> Seconds:
    """Seconds spent in each part, from now on."""
    seconds: Seconds = defaultdict(float)
    for name in ("reach", "after", "settle", "leave"):
        timed(stream.Stream, name, "forward", seconds)
    timed(statistics, "embed", "forward", seconds)
    timed(site_sums, "add_gram", "gram", seconds)
    timed(site_sums, "add_cross", "gram", seconds)
    timed(site_sums, "unpacked", "gram", seconds)
    timed(site_levels, "weights_for_targets", "local", seconds)
    timed(site_levels, "prune_site", "local", seconds)
    timed(supernet, "write_site", "disk", seconds)
    return seconds


def build(
    model: PreTrainedModel, adapter: Adapter, windows: Tensor, arguments: argparse.Namespace
) -> dict[str, object]:
    """Build a supernet; what it took and gave."""
    geometry = adapter.geometry(model.config)
    shapes = {s: shapes_of(geometry.shape(s), arguments.levels) for s in geometry.sites}
    centre = {site: some[len(some) // 2] for site, some in shapes.items()}
    folder = Path(tempfile.mkdtemp(dir=arguments.folder)) / "supernet"
    parts = watch()
    start, cpu = time.perf_counter(), time.process_time()
    net = supernet.build_supernet(
        Resident(model),
        windows,
        shapes,
        centre,
        folder,
        accumulation=arguments.accumulation,
        weigh_tokens=arguments.weigh_tokens,
        correction=arguments.correction,
        batch_size=arguments.batch_size,
        spill=folder.with_name("activations") if arguments.store == "disk" else None,
        progress=True,
    )
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    disk = sum(path.stat().st_size for path in folder.iterdir())
    losses = {
        str(site): {shape_text(shape): net.loss(site, shape) for shape in net.shapes(site)}
        for site in geometry.sites
    }
    shutil.rmtree(folder.parent)
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "disk_bytes": disk,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "parts": {part: round(value, 1) for part, value in parts.items()},
        "tokens": windows.numel(),
        "losses": losses,
    }


def compare(
    model: PreTrainedModel, adapter: Adapter, windows: Tensor, num_blocks: int
) -> dict[str, Mapping[str, tuple[float, float]]]:
    """For sites of some blocks and each width, our loss and the published one's."""
    geometry = adapter.geometry(model.config)
    last = geometry.num_blocks - 1
    blocks = {round(index * last / max(1, num_blocks - 1)) for index in range(num_blocks)}
    table: dict[str, Mapping[str, tuple[float, float]]] = {}

    def visit(site: Site, seen: statistics.SiteStatistics) -> None:
        if site.block in blocks:
            weight_OI = seen.weights[OUTPUT_NAME[site.kind]].float()
            table[str(site)] = compare_site(weight_OI, seen.gram, geometry, site)
            print(site, table[str(site)], file=sys.stderr)

    statistics.stream_blocks(Resident(model), windows, visit)
    return table


def compare_site(
    weight_OI: Tensor, gram_II: Tensor, geometry: Geometry, site: Site
) -> dict[str, tuple[float, float]]:
    """Losses by width. Whole KV groups are the units of attention, so that both can be cut."""
    dense = geometry.shape(site)
    shapes = [shape for shape in shapes_of(dense, 9) if shape != dense]
    if isinstance(dense, AttentionShape):
        queries = dense.queries_per_group
        shapes = [AttentionShape(count, queries) for count in range(1, dense.num_kv_heads)]
        size, rounds = queries * geometry.head_dim, 1
    else:
        size, rounds = 1, 16
    levels = prune_site(weight_OI, gram_II, shapes, dense)
    table = {}
    for shape, level in zip(shapes, levels, strict=True):
        num_kept = shape.num_channels if isinstance(shape, FFNShape) else shape.num_kv_heads
        theirs = published_loss(weight_OI, gram_II, size, num_kept, rounds)
        table[shape_text(shape)] = (level.loss, theirs)
    return table


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, required=True, help="one text file, may be .gz")
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--levels", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--store", default="memory", choices=["memory", "disk"])
    parser.add_argument(
        "--accumulation", default="median", choices=["none", "median", "expectation"]
    )
    parser.add_argument("--relative", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--correction", type=float, default=0.0, help="drift to undo, 0 to 1")
    parser.add_argument("--folder", help="where to build (a temporary folder inside it)")
    parser.add_argument(
        "--compare", type=int, default=0, help="compare losses at so many blocks, build nothing"
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the document")
    add_output(parser)
    arguments = parser.parse_args()
    model = load_model(arguments.model, dtype=getattr(torch, arguments.dtype))
    tokenizer = load_tokenizer(arguments.model)
    adapter = adapter_for(model.config)
    windows = random_windows(
        tokenizer, arguments.text, arguments.tokens, arguments.window, arguments.seed
    )
    if arguments.compare:
        table = compare(model, adapter, windows, arguments.compare)
        finish("supernet losses", {"compare": table}, arguments, arguments.seed)
        return
    numbers = build(model, adapter, windows, arguments)
    if not arguments.json:
        print({key: value for key, value in numbers.items() if key != "losses"})
    finish("supernet", numbers, arguments, arguments.seed)


if __name__ == "__main__":
    main()
