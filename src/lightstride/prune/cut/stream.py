"""Activations on their way through a model, one block at a time, site by site.

A block is run up to the input of a site's output layer, and that input is kept; from then on
the site is bypassed, and its output is the product of its (perhaps cut) output weights and that
input.  So each product of a block is computed about once, whatever is decided at its sites.  Most
blocks are additive: their output is their input plus their sites' outputs.  There the output of a
passed site is added to the hidden states at once, and the norms before it are not run again;
the bits are the same.  Only the block's weights and a batch of activations are on the device;
the rest lies in memory, or in files (`models/activations.py`).

Shapes: N windows of this rank, L tokens each, D hidden size, I inputs of output weights,
O = D outputs, B windows in a batch.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightstride.models.activations import ActivationStore, Rows
from lightstride.models.block_calls import Call
from lightstride.models.families.adapter import OUTPUT_NAME, Adapter, SiteWeights
from lightstride.models.shapes import KINDS, Kind


class _Stop(Exception):  # noqa: N818 - no error: it ends a forward pass early
    """A block has come to the layer whose input was wanted."""


@dataclass(frozen=True)
class OutputWeights:
    """Output weights of a site, as wide as the dense ones."""

    weight_OI: Tensor
    bias_O: Tensor | None

    @classmethod
    def of(cls, weights: SiteWeights, kind: Kind) -> "OutputWeights":
        """The output weights among a site's weights."""
        return cls(weights[OUTPUT_NAME[kind]], weights.get(f"{OUTPUT_NAME[kind]}_bias"))

    def __call__(self, input_BLI: Tensor) -> Tensor:
        return functional.linear(input_BLI, self.weight_OI, self.bias_O)


@dataclass
class Stream:
    """Activations of this rank's windows, as far as the model has been run."""

    hidden_NLD: Rows
    """Inputs of the block at hand; in an additive block, plus the passed sites' outputs."""
    adapter: Adapter
    shelf: ActivationStore
    device: torch.device
    inputs: dict[Kind, Rows] = field(default_factory=dict)
    """Inputs (N, L, I) of the output weights of the sites that were reached."""
    outputs: dict[Kind, OutputWeights | None] = field(default_factory=dict)
    """Output weights of the block's passed sites; None where their outputs are added already."""
    use_additivity: bool = True
    """Use the shortcut of additive blocks; without it, for tests, all are run alike."""
    additive: bool = False
    """True if the block at hand only adds its sites' outputs to the hidden states."""

    @property
    def adds_directly(self) -> bool:
        """True if outputs of passed sites are added to the hidden states at once."""
        return self.additive and self.use_additivity

    def enter(self, block: nn.Module, windows: slice, call: Call) -> None:
        """Begin a block; try on some windows whether it is additive."""
        self.outputs.clear()
        hidden_BLD = self.hidden_NLD[windows].to(self.device)
        answers = {kind: torch.roll(hidden_BLD, 1 + i, -1) for i, kind in enumerate(KINDS)}
        sum_BLD = hidden_BLD
        for answer in answers.values():
            sum_BLD = sum_BLD + answer
        self.additive = torch.equal(self._run(block, hidden_BLD, call, answers), sum_BLD)

    def run_to_site(
        self, block: nn.Module, kind: Kind, windows: slice, call: Call, *, keep: bool = True
    ) -> Tensor:
        """Run the block up to a site's output weights; their input (B, L, I), kept if wanted."""
        caught: list[Tensor] = []

        def catch(_: nn.Module, args: tuple[Any, ...]) -> None:
            caught.append(args[0] if isinstance(args[0], Tensor) else args[0].whole())
            raise _Stop

        handle = self.adapter.output_layer(block, kind).register_forward_pre_hook(catch)
        hidden_BLD = self.hidden_NLD[windows].to(self.device)
        try:
            self._run(block, hidden_BLD, call, self._answers(windows, hidden_BLD))
        except _Stop:
            pass
        finally:
            handle.remove()
        input_BLI = caught[0].reshape(*hidden_BLD.shape[:2], -1)
        if keep:
            shape = (*self.hidden_NLD.shape[:2], input_BLI.shape[-1])
            if kind not in self.inputs or self.inputs[kind].shape != shape:
                self.inputs[kind] = self.shelf.room(*shape, dtype=input_BLI.dtype)
            self.inputs[kind][windows] = input_BLI
        return input_BLI

    def after(
        self, block: nn.Module, kind: Kind, output: OutputWeights, windows: slice, call: Call
    ) -> Tensor:
        """Hidden states (B, L, D) after a site that was reached, if it answers by `output`."""
        hidden_BLD = self.hidden_NLD[windows].to(self.device)
        answer_BLD = output(self.inputs[kind][windows].to(self.device))
        if self.adds_directly:
            return hidden_BLD + answer_BLD
        later = dict.fromkeys(KINDS[KINDS.index(kind) + 1 :], torch.zeros_like(hidden_BLD))
        answers = {**self._answers(windows, hidden_BLD), kind: answer_BLD, **later}
        return self._run(block, hidden_BLD, call, answers)

    def step(
        self, block: nn.Module, kind: Kind, output: OutputWeights, windows: slice, call: Call
    ) -> Tensor:
        """Run to a site whose output weights are known; the hidden states that `after` gives."""
        input_BLI = self.run_to_site(block, kind, windows, call, keep=not self.adds_directly)
        if not self.adds_directly:
            return self.after(block, kind, output, windows, call)
        hidden_BLD = self.hidden_NLD[windows].to(self.device) + output(input_BLI)
        self.hidden_NLD[windows] = hidden_BLD
        return hidden_BLD

    def set_site_output(
        self, kind: Kind, output: OutputWeights, batches: Sequence[slice], *, stepped: bool = False
    ) -> None:
        """Let a site that was reached, or stepped over, answer by `output` from now on."""
        self.outputs[kind] = None if self.adds_directly else output
        for windows in batches if self.adds_directly and not stepped else []:
            answer_BLD = output(self.inputs[kind][windows].to(self.device))
            self.hidden_NLD[windows] = self.hidden_NLD[windows].to(self.device) + answer_BLD

    def leave(self, block: nn.Module, windows: slice, call: Call) -> None:
        """Replace the block's inputs by its outputs, all sites being settled."""
        if not self.adds_directly:
            hidden_BLD = self.hidden_NLD[windows].to(self.device)
            answers = self._answers(windows, hidden_BLD)
            self.hidden_NLD[windows] = self._run(block, hidden_BLD, call, answers)

    def _answers(self, windows: slice, hidden_BLD: Tensor) -> dict[Kind, Tensor]:
        """Outputs (B, L, D) of the passed sites."""
        return {
            kind: torch.zeros_like(hidden_BLD)
            if output is None
            else output(self.inputs[kind][windows].to(self.device))
            for kind, output in self.outputs.items()
        }

    def _run(
        self, block: nn.Module, hidden_BLD: Tensor, call: Call, answers: Mapping[Kind, Tensor]
    ) -> Tensor:
        """The block's output; sites with an answer compute nothing."""
        with ExitStack() as stack:
            for kind, answer_BLD in answers.items():
                stack.enter_context(self.adapter.bypass(block, kind, answer_BLD))
            result: Tensor = block(hidden_BLD, *call.args, **call.kwargs)
        return result
