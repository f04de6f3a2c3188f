"""Tokens a second of recovery, part by part: first pass, and passes that remember the teacher.

    python benchmarks/recover_speed.py --cut rec/25 --threads 2 --output results/recover-speed.json

Steps of random tokens; of all repeats the median by processor time, or with `--clock wall`
by time, for a quiet machine.  The last line of stdout is one JSON document.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lightstride.models.families.registry import adapter_for
from lightstride.models.opening.load import load_model
from lightstride.recover.optimizer import MasterAdam
from lightstride.recover.said import SaidRows
from lightstride.recover.student import Learning, Student
from lightstride.recover.teacher import Dense
from lightstride.training.top_k_kl import concatenate
from output import add_output, finish

TOP_K = 64


class Bench:
    """One student with its teacher, and the parts of a step."""

    def __init__(self, flags: argparse.Namespace) -> None:
        dense, small = (load_model(name, dtype=torch.bfloat16) for name in (flags.model, flags.cut))
        adapter = adapter_for(dense.config)
        self.student = Student(small, adapter, Learning())
        self.teacher = Dense(dense, adapter, TOP_K, SaidRows(Path("nowhere"), limit_bytes=0))
        rate = 1e-6
        self.optimizer = MasterAdam([{"params": self.student.learned(), "lr": rate, "peak": rate}])
        shape = (flags.step_tokens // flags.window, flags.window)
        self.tokens_BL = torch.randint(dense.config.vocab_size, shape)

    def step(self, now: Callable[[], float]) -> dict[str, float]:
        """Seconds of each part of one step."""
        moments = [now()]
        said = concatenate(self.teacher.say(list(range(len(self.tokens_BL))), self.tokens_BL))
        moments.append(now())
        weights_BL = torch.full(self.tokens_BL.shape, 1 / self.tokens_BL.numel())
        loss = self.student(self.tokens_BL, said, weights_BL)
        moments.append(now())
        loss.backward()
        moments.append(now())
        self.optimizer.clip(1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        moments.append(now())
        names = ("teacher", "forward_and_loss", "backward", "optimizer")
        pairs = zip(moments[1:], moments[:-1], strict=True)
        return {name: end - start for name, (end, start) in zip(names, pairs, strict=True)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="the dense model")
    parser.add_argument("--cut", required=True, help="a folder that prune wrote")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--step-tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=["processor", "wall"], default="processor")
    add_output(parser)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    bench = Bench(flags)
    now = time.perf_counter if flags.clock == "wall" else time.process_time
    bench.step(now)
    steps = [bench.step(now) for _ in range(flags.repeats)]
    parts = {name: statistics.median(step[name] for step in steps) for name in steps[0]}
    first = statistics.median(sum(step.values()) for step in steps)
    further = statistics.median(sum(step.values()) - step["teacher"] for step in steps)
    numbers = {
        "seconds": parts,
        "first_pass_tokens_per_second": flags.step_tokens / first,
        "further_passes_tokens_per_second": flags.step_tokens / further,
    }
    print(numbers, file=sys.stderr)
    finish("recover-speed", numbers, flags, 0)


if __name__ == "__main__":
    main()
