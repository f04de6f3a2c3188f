"""What each deployment target costs in quality: the same search in each target's space.

    python benchmarks/targets.py --text wiki.valid.raw.gz --test wiki.test.raw.gz --rounds 1

Protocol and flags are those of `protocol.py`.  `hf`, `vllm`, `gguf` and `any` allow the same
shapes where they differ in nothing that this model has; then they are searched once.  The last
line of stdout is one JSON document.
"""

import argparse

from lightstride.prune.space.targets import TARGETS
from output import finish
from protocol import Bench, open_bench, run_all, search_flags


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], parents=[search_flags()], add_help=False
    )
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    bench = open_bench(flags)
    geometry = bench.adapter.geometry(bench.model.config)
    found: dict[str, dict[str, object]] = {}
    for name in flags.targets:
        shapes = TARGETS[name].admissible(geometry)
        same = [other for other in found if TARGETS[other].admissible(geometry) == shapes]
        twin = [other for other in same if TARGETS[other].uniform == TARGETS[name].uniform]
        if twin:
            found[name] = {**found[twin[0]], "same_as": twin[0]}
            continue
        folder = None if flags.save is None else f"{flags.save}/{name}"
        narrowed = argparse.Namespace(**{**vars(flags), "target": name, "save": folder})
        found[name] = run_all(
            Bench(bench.model, bench.adapter, bench.text_T, bench.test_NL, narrowed), flags.seed
        )
    finish("targets", found, flags, flags.seed)


if __name__ == "__main__":
    main()
