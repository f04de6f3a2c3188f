"""Put the grafts of a smashed model where the package ships them, small and without local paths.

    lightstride smash smollm2-135m -o demo-smash --prompts ...
    python benchmarks/ship_grafts.py demo-smash smollm2-135m-smash
    lightstride smash smollm2-135m-smash -o planned --kv 0.5 0.35
    python benchmarks/ship_grafts.py planned smollm2-135m-smash --plans

Weights are written in bfloat16; unless asked otherwise the model decodes losslessly.
`lightstride.json` and `result.json` come along, the command, the data and the numbers, and so do
memory plans, or these alone (`--plans`); the full cache stays the default.  The tokenizer does not:
it is the base's.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lightstride.checkpoint import read_record, write_record
from lightstride.errors import LightstrideError, ModelError
from lightstride.files import whole_folder, write_json
from lightstride.files.read import read_json
from lightstride.memory.plan_files import PLAN_FILE, read_plans, write_plans
from lightstride.models.opening.builtin import ASSETS, GRAFTS
from lightstride.models.opening.load import load_model
from lightstride.results import read_result
from lightstride.smash.hub import SmashModel
from lightstride.smash.model.graft_files import WEIGHTS, graft_state, write_grafts
from output import short

LIMIT = 8 * 10**6
"""Most bytes that the grafts may have."""


def ship(source: Path, name: str, assets: Path = ASSETS) -> Path:
    """Write the grafts of a smashed model as the built-in `name`; the folder."""
    base = load_model(GRAFTS[name], dtype=torch.bfloat16)
    model = SmashModel.from_pretrained(source, base=base, dtype=torch.bfloat16)
    model.config.base = GRAFTS[name]
    model.config.mode = "lossless"
    with whole_folder(assets / name) as partial:
        state = {key: lowered(tensor) for key, tensor in graft_state(model).items()}
        write_grafts(partial, model.config, state)
        size = (partial / WEIGHTS).stat().st_size
        if size > LIMIT:
            raise ModelError(f"the grafts in {source} have {size:,} bytes; {LIMIT:,} are allowed")
        record = {
            k: v for k, v in read_record(source).items() if k not in ("format", "lightstride")
        }
        write_record(partial, shortened(record))
        if (source / "result.json").is_file():
            write_json(
                partial / "result.json", shortened(dict(read_result(source / "result.json")))
            )
        if read_plans(source) is not None:
            ship_plans(source, partial)
    return assets / name


def ship_plans(source: Path, target: Path) -> None:
    """Write the memory plans of a folder into another one; its own are replaced."""
    plans = read_plans(source)
    if plans is None:
        raise ModelError(f"{source} has no memory plans: make them with lightstride smash --kv")
    facts = read_json(source / PLAN_FILE, dict[str, Any], ModelError)["facts"]
    write_plans(target, replace(plans, default=None), shortened(facts))


def lowered(tensor: torch.Tensor) -> torch.Tensor:
    """Weights in bfloat16; token ids as they are."""
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def shortened(value: Any) -> Any:
    """The same document without the folders of this machine."""
    if isinstance(value, dict):
        return {shortened(key): shortened(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [shortened(each) for each in value]
    if isinstance(value, str):
        return ",".join(map(short, value.split(",")))
    return value


def main() -> int:
    """Ship the grafts of a folder; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of a smashed model")
    parser.add_argument("name", choices=sorted(GRAFTS))
    parser.add_argument("--plans", action="store_true", help="memory plans alone")
    flags = parser.parse_args()
    try:
        folder = ASSETS / flags.name
        if flags.plans:
            ship_plans(flags.source, folder)
        else:
            ship(flags.source, flags.name)
    except LightstrideError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    print(json.dumps({"bytes": sum(path.stat().st_size for path in folder.iterdir())}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
