"""What the sites after a cut should see, and aim at: perplexity of even plans, setting by setting.

    python benchmarks/accumulation.py --model smollm2-135m --text wiki.valid.raw.gz \
        --held-out wiki.test.raw.gz --plans 1152,3x2 768,2x2 --settings none median median:rel:0.5

A plan is an FFN width and KV groups x queries for every block.  A setting is an accumulation
(none, median, expectation), `rel` if tokens are weighed, and the part of the drift to undo.
Perplexity over every tenth window of 2,048 tokens of the held-out text.  Calibration as in
`supernet.py`, or packed documents if the text is no plain file.  The table goes to stderr; the
last line of stdout is one JSON document.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightstride.data.windows import Windows, packed_windows, strided_windows
from lightstride.evaluate.perplexity import perplexity
from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.models.opening.source import Resident
from lightstride.models.shapes import AttentionShape, FFNShape, Geometry, Shape, Site
from lightstride.prune.cut.materialize import materialize
from lightstride.prune.cut.supernet import Accumulation, build_supernet
from output import add_output, finish
from supernet import random_windows

ACCUMULATIONS: Mapping[str, Accumulation] = {
    "none": "none",
    "median": "median",
    "expectation": "expectation",
}


@dataclass(frozen=True)
class Setting:
    """One way to build a supernet."""

    accumulation: Accumulation
    weigh_tokens: bool
    correction: float
    damping: float

    @classmethod
    def parse(cls, text: str, damping: float) -> Self:
        """A setting from `accumulation[:rel][:correction]`."""
        name, *rest = text.split(":")
        correction = [float(part) for part in rest if part != "rel"]
        return cls(ACCUMULATIONS[name], "rel" in rest, sum(correction), damping)


def parse_plan(text: str) -> tuple[FFNShape, AttentionShape]:
    """Shapes from `width,GROUPSxQUERIES`."""
    width, _, attention = text.partition(",")
    groups, queries = attention.split("x")
    return FFNShape(int(width)), AttentionShape(int(groups), int(queries))


def levels_around(dense: Shape, centre: Shape, *, only_centre: bool) -> list[Shape]:
    """The centre alone; or FFN widths up to four eighths around it, or all attentions."""
    if only_centre:
        return [centre]
    if isinstance(dense, AttentionShape):
        groups, queries = range(1, dense.num_kv_heads + 1), range(1, dense.queries_per_group + 1)
        return [AttentionShape(g, q) for g in groups for q in queries]
    assert isinstance(centre, FFNShape)
    step = dense.num_channels // 8
    widths = [centre.num_channels + step * count for count in range(-4, 5)]
    return [FFNShape(width) for width in widths if 0 < width <= dense.num_channels]


def prune_evenly(
    model: PreTrainedModel,
    windows_NL: Tensor,
    plan: tuple[FFNShape, AttentionShape],
    setting: Setting,
    folder: Path,
) -> PreTrainedModel:
    """The model with all blocks cut to the same shapes."""
    adapter = adapter_for(model.config)
    geometry: Geometry = adapter.geometry(model.config)
    ffn, attention = plan
    centre: dict[Site, Shape] = {
        s: attention if s.kind == "attention" else ffn for s in geometry.sites
    }
    only_centre = setting.accumulation != "expectation"
    shapes = {
        site: levels_around(geometry.shape(site), shape, only_centre=only_centre)
        for site, shape in centre.items()
    }
    net = build_supernet(
        Resident(model),
        windows_NL,
        shapes,
        centre,
        folder,
        accumulation=setting.accumulation,
        weigh_tokens=setting.weigh_tokens,
        correction=setting.correction,
        damping=setting.damping,
        progress=True,
    )
    return materialize(model, adapter, {site: net.load(site, centre[site]) for site in centre})


def measure(
    model: PreTrainedModel,
    windows_NL: Tensor,
    held_out: Windows,
    plans: Sequence[str],
    settings: Sequence[Setting],
) -> list[dict[str, object]]:
    """One row for each plan and setting."""
    rows: list[dict[str, object]] = []
    for plan in plans:
        for setting in settings:
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                smaller = prune_evenly(
                    model, windows_NL, parse_plan(plan), setting, Path(folder) / "net"
                )
                built = time.perf_counter() - start
                value = perplexity(smaller, held_out).value
            rows.append({"plan": plan, **vars(setting), "seconds": round(built, 1)})
            rows[-1]["perplexity"] = round(value, 2)
            print(rows[-1], file=sys.stderr)
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, required=True, help="calibration: a text file or more")
    parser.add_argument("--held-out", type=Path, required=True, help="text for perplexity")
    parser.add_argument("--plans", nargs="+", default=["1152,3x2", "768,2x2"])
    parser.add_argument("--settings", nargs="+", default=["none", "median", "expectation"])
    parser.add_argument("--damping", type=float, default=0.01)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    add_output(parser)
    arguments = parser.parse_args()
    model = load_model(arguments.model, dtype=getattr(torch, arguments.dtype))
    tokenizer = load_tokenizer(arguments.model)
    text: Path = arguments.text
    if text.name.removesuffix(".gz").endswith((".raw", ".txt")):
        windows_NL = random_windows(
            tokenizer, text, arguments.tokens, arguments.window, arguments.seed
        )
    else:
        windows_NL = packed_windows(
            str(text),
            tokenizer,
            num_tokens=arguments.tokens,
            window=arguments.window,
            seed=arguments.seed,
        ).tokens_NL
    held_out = strided_windows(str(arguments.held_out), tokenizer, window=2048, every=10)
    settings = [Setting.parse(text, arguments.damping) for text in arguments.settings]
    rows = measure(model, windows_NL, held_out, arguments.plans, settings)
    numbers = {"tokens": windows_NL.numel(), "source": text.name, "rows": rows}
    finish("accumulation", numbers, arguments, arguments.seed)


if __name__ == "__main__":
    main()
