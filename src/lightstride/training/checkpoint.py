"""The checkpoint that a killed training goes on from: one file, whole or not there.

`training.safetensors` holds the weights that learn, the optimizer's two moments (the second whole
or as means of rows and columns), step and, where it keeps one, fp32 master of each, and, as text
in its header, how far the training is.  Renamed into place, so that weights and step always belong
together.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from lightstride.distributed import rank
from lightstride.errors import WorkError
from lightstride.files import whole_file
from lightstride.files.read import open_tensors, parse_json
from lightstride.training.fsdp import like, whole

TRAINING_FILE = "training.safetensors"
VERSION = "1"
STATE = ("exp_avg", "exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col", "step", "master")
SMOOTHING = 0.95
KEPT_LOSSES = 200
"""Points of the learning curve that are kept."""


@dataclass
class Progress:
    """How far a training is."""

    step: int = 0
    seconds: float = 0.0
    processor_seconds: float = 0.0
    """Of all threads."""
    seconds_ahead: float = 0.0
    """Of the seconds, those that went into later steps already."""
    smooth: dict[str, float] = field(default_factory=dict)
    """Running means of the losses."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    """Pairs of step and loss, thinned out."""
    evaluations: list[dict[str, object]] = field(default_factory=list)
    skipped: int = 0
    """Steps whose gradient was not finite."""
    pace: list[float] = field(default_factory=list)
    """Where the training's schedule stands, where minutes decide it (`recover/pace.py`)."""

    @property
    def used(self) -> float:
        """Seconds that went into the steps until now."""
        return self.seconds - self.seconds_ahead

    def note(self, stats: dict[str, float]) -> None:
        """Take in the losses of one step."""
        for name, value in stats.items():
            before = self.smooth.get(name, value)
            self.smooth[name] = SMOOTHING * before + (1 - SMOOTHING) * value
        spacing = self.losses[1][0] - self.losses[0][0] if len(self.losses) > 1 else 1
        if not self.losses or self.step >= self.losses[-1][0] + spacing:
            self.losses.append((self.step, stats["loss"]))
        if len(self.losses) > 2 * KEPT_LOSSES:
            self.losses = self.losses[::2]

    def shown(self) -> dict[str, str]:
        """The figures beside the progress bar."""
        said = {name: f"{value:.3f}" for name, value in self.smooth.items()}
        if self.evaluations and isinstance(found := self.evaluations[-1].get("lossless"), float):
            said["tokens/step"] = f"{found:.2f}"
        return said


@dataclass(frozen=True)
class TrainingFolder:
    """Where the training's checkpoint is."""

    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / TRAINING_FILE

    def save(self, learner: nn.Module, optimizer: torch.optim.Optimizer, at: Progress) -> None:
        """Write the checkpoint; the first process does."""
        state = {f"weight.{name}": whole(tensor) for name, tensor in learned(learner).items()}
        for name, parameter in learned(learner).items():
            for part in STATE:
                found = optimizer.state.get(parameter, {}).get(part)
                if found is not None:
                    state[f"{part}.{name}"] = whole(found)
        if rank() > 0:
            return
        with whole_file(self.path) as partial:
            said = {"version": VERSION, "progress": json.dumps(asdict(at))}
            save_file(state, partial, {**said, "sha256": state_hash(state, said["progress"])})

    def load(self, learner: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
        """Put back what the checkpoint holds; a new start where there is none."""
        if not self.path.exists():
            return Progress()
        try:
            with open_tensors(self.path, WorkError) as file:
                header = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            progress = parse_json(header["progress"], Progress, str(self.path), WorkError)
            if header.get("sha256", written := state_hash(state, header["progress"])) != written:
                raise WorkError("its tensors differ from their hash")
            version = header["version"]
        except (OSError, SafetensorError, ValueError, KeyError, WorkError) as error:
            raise WorkError(f"{self.path} is damaged; delete it to train anew") from error
        parameters = learned(learner)
        if version != VERSION or not fits(state, parameters):
            raise WorkError(f"{self.path} is of another training; delete it to train anew")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(like(state[f"weight.{name}"], parameter))
                if f"step.{name}" in state:
                    optimizer.state[parameter] = {
                        part: placed(part, found, parameter)
                        for part in STATE
                        if (found := state.get(f"{part}.{name}")) is not None
                    }
        return progress


def placed(part: str, value: Tensor, parameter: nn.Parameter) -> Tensor:
    """A part of the state of a weight, where the optimizer wants it."""
    if part == "step":
        return value
    return value.to(parameter.device) if part == "exp_avg_sq_col" else like(value, parameter)


def learned(learner: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: p for name, p in learner.named_parameters() if p.requires_grad}


def fits(state: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> bool:
    """Whether a checkpoint holds exactly these parameters."""
    shapes = {n.removeprefix("weight."): t.shape for n, t in state.items() if n[:7] == "weight."}
    if shapes != {name: parameter.shape for name, parameter in parameters.items()}:
        return False
    return all(
        name in shapes and is_of(part, tensor, shapes[name])
        for key, tensor in state.items()
        for part, _, name in [key.partition(".")]
    )


def is_of(part: str, tensor: Tensor, shape: torch.Size) -> bool:
    """Whether a tensor has the shape of this part of the state of such a weight."""
    if part == "step":
        return tensor.numel() == 1
    parts = {"exp_avg_sq_row": shape[:-1], "exp_avg_sq_col": shape[-1:]}
    return tensor.shape == parts.get(part, shape)


def state_hash(state: dict[str, Tensor], progress: str) -> str:
    """SHA-256 over the tensors by name, with their types and shapes, and the progress."""
    found = hashlib.sha256(progress.encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
