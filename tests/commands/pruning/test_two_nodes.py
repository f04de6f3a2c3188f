"""Two nodes that torchrun brings together share a work folder, and prune as one process does.

Each has its own copy of the model, its own cache of converted models and its own output folder;
only rank 0, which torchrun gives to one of them, writes there.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import lightstride
from helpers.prune_runs import make_inputs
from helpers.toys import VOCAB_SIZE, tiny_llama
from helpers.trained_tokenizer import trained_tokenizer
from lightstride.export.gguf.weights import ModelWeights
from lightstride.export.gguf.write import write_gguf
from lightstride.models.families.registry import adapter_for

SECONDS = 400
SIZES = {
    "sparsity": 0.5,
    "preset": "demo",
    "window": 32,
    "rounds": 2,
    "generations": 2,
    "offspring": 5,
    "calibration-tokens": 512,
    "search-tokens": 512,
    "held-out-tokens": 256,
    "multiple": 8,
    "device": "cpu",
    "dtype": "float32",
}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def save_gguf(path: Path) -> None:
    """A toy in a file that must be converted before it is read."""
    tokenizer = trained_tokenizer()
    model = tiny_llama(num_channels=48, vocab_size=max(VOCAB_SIZE, len(tokenizer)))
    geometry = adapter_for(model.config).geometry(model.config)
    write_gguf(
        ModelWeights(model), model.config, geometry, tokenizer, path, dtype="f32", name="toy"
    )


def start(node: Path, launcher: Sequence[str], text: Path, work: Path) -> subprocess.Popen[bytes]:
    """A run on a node, in the node's own folder."""
    source = str(Path(lightstride.__file__).parents[1])
    environment = {
        **os.environ,
        "PYTHONPATH": source,
        "OMP_NUM_THREADS": "1",
        "LIGHTSTRIDE_CACHE": str(node / "cache"),
        "HF_HOME": str(node / "hub"),
    }
    values = {**SIZES, "calibration": text, "work": work}
    words = ["prune", str(node / "toy.gguf"), "-o", "cut"]
    words += [f"--{name}={value}" for name, value in values.items()]
    command = [sys.executable, *launcher, "-m", "lightstride", *words]
    with (node / "said").open("wb") as said:
        return subprocess.Popen(command, cwd=node, env=environment, stdout=said, stderr=said)


def finish(runs: Sequence[tuple[Path, subprocess.Popen[bytes]]]) -> None:
    """Wait for the runs, which must all end well; none is left behind."""
    try:
        for node, process in runs:
            assert process.wait(SECONDS) == 0, (node / "said").read_text()
    finally:
        for _, process in runs:
            process.kill()


@pytest.mark.slow
def test_two_nodes_prune_as_one_process(tmp_path: Path) -> None:
    make_inputs(tmp_path)
    text = tmp_path / "text.jsonl"
    nodes = [tmp_path / name for name in ("alone", "first", "second")]
    save_gguf(tmp_path / "toy.gguf")
    for node in nodes:
        node.mkdir()
        shutil.copyfile(tmp_path / "toy.gguf", node / "toy.gguf")
    alone, *both = nodes
    finish([(alone, start(alone, [], text, tmp_path / "work-alone"))])
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}", "--rdzv-id=toy"]
    runs = []
    launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *meeting]
    for node in both:
        runs.append((node, start(node, launcher, text, tmp_path / "work")))
    finish(runs)
    written = [node for node in both if (node / "cut").exists()]
    assert len(written) == 1
    plans = [
        json.loads((node / "cut" / "lightstride.json").read_text())["plan"]
        for node in (alone, *written)
    ]
    assert plans[0] == plans[1]
    weights = [(node / "cut" / "model.safetensors").read_bytes() for node in (alone, *written)]
    assert weights[0] == weights[1]
    for node in nodes:
        assert list((node / "cache").glob("**/*.safetensors"))
