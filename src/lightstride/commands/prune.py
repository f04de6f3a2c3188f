"""`lightstride prune`: check everything, then statistics, search, weights, checkpoints.

Everything that can be refused is refused before the first long stage.  Every stage leaves a
file in the work folder when it is finished; a run that was killed goes on from them with
`--resume` and ends with the same plans.
"""

import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch
from transformers import PreTrainedModel

from lightstride import distributed
from lightstride.checkpoint import is_saved, save_checkpoint
from lightstride.commands.outputs import printed, resumable_writer, save_result
from lightstride.commands.pruning.dry_run import dry_run
from lightstride.commands.pruning.expert_tokens import count_experts
from lightstride.commands.pruning.setup import PruneRun, open_run
from lightstride.config import PruneConfig
from lightstride.distributed import barrier, rank
from lightstride.errors import WorkError
from lightstride.evaluate.perplexity import perplexity
from lightstride.files import whole_file
from lightstride.files.read import Count, Finite
from lightstride.files.sealed import read_sealed, write_sealed
from lightstride.models.device import give_back_freed
from lightstride.models.opening.skeleton import one_block
from lightstride.models.opening.source import Resident, WeightSource
from lightstride.models.passes import Spill
from lightstride.models.rebuild import empty_with_widths
from lightstride.progress import Bar
from lightstride.prune.cut.cut_source import CutSource
from lightstride.prune.cut.materialize import materialize
from lightstride.prune.forecast import forecast, measure_rates, sentence
from lightstride.prune.heal import Healing, heal
from lightstride.prune.rounds import RoundResult, name_of
from lightstride.prune.space.plan import Plan, dense_plan, num_parameters, sparsity
from lightstride.results import Numbers, markdown_table
from lightstride.search.result import GenerationReport, OnGeneration


class SizeNote(msgspec.Struct):
    """What a finished size's numbers have at the least."""

    name: str
    folder: str
    sparsity: Finite
    parameters: Count
    block_parameters: Count
    bytes: Count
    perplexity: Finite | None
    plan: str
    rounds: list[dict[str, object]]


def prune(config: PruneConfig) -> Mapping[str, object]:
    """Prune a model to every size that was asked for; the result, as in `result.json`."""
    config = config.resolved()
    if config.dry_run:
        return dry_run(config)
    distributed.init()
    with resumable_writer(config):
        return prune_alone(config)


def prune_alone(config: PruneConfig) -> Mapping[str, object]:
    """The same, while no other run writes there."""
    started = time.perf_counter()
    run = open_run(config, generations_bar)
    print_forecast(run)
    dense = measure(run, run.source, dense_plan(run.geometry), "dense")
    found = run.runner.plans(config.sparsity)
    sizes = [finish_size(run, share, results) for share, results in found.items()]
    result: Mapping[str, object] = {}
    if rank() == 0:
        numbers = {
            "dense": dense,
            "sizes": sizes,
            "seconds": time.perf_counter() - started,
            "stages": run.runner.clock.as_dict(),
        }
        record = run.runner.work / "search.jsonl"
        with printed(sizes_table([dense, *sizes])):
            if record.exists():
                with whole_file(Path(config.output) / record.name) as partial:
                    shutil.copyfile(record, partial)
            result = save_result("prune", config, numbers, seed=config.seed, data=run.texts.hashes)
    barrier()
    return result


def print_forecast(run: PruneRun) -> None:
    """Write to stderr how long the run will take, by rates measured in a few seconds."""
    if rank() == 0:
        runner = run.runner
        batch_BL = torch.zeros_like(runner.calibration_NL[: runner.settings.batch_size])
        rates = measure_rates(timed_model(run), runner.adapter, batch_BL)
        give_back_freed()
        held_out = run.texts.held_out.num_tokens
        stages = forecast(runner, run.config.sparsity, run.config.heal, held_out)
        sys.stderr.write(f"lightstride: {sentence(stages, rates)}\n")


def timed_model(run: PruneRun) -> PreTrainedModel:
    """A model whose first block can be run: the dense one, or a block of random weights."""
    model, device = run.model, run.source.device.type
    if not run.source.streamed:
        return model
    trusted = run.config.trust_remote_code
    return one_block(model.config, model.dtype, device, trust_remote_code=trusted)


def size_folder(config: PruneConfig, share: float) -> Path:
    """Folder of the checkpoint of a sparsity."""
    output = Path(config.output)
    return output if len(config.sparsity) == 1 else output / name_of(share)


def finish_size(run: PruneRun, share: float, results: Sequence[RoundResult]) -> Numbers:
    """Refit, measure and save the plan of one sparsity; its numbers."""
    runner, name = run.runner, name_of(share)
    note, folder = runner.work / f"size-{name}.json", size_folder(run.config, share)
    if distributed.broadcast_object(note.exists() and is_saved(folder)):
        return read_note(note)
    plan = results[-1].plan if results else runner.centre(share)
    levels = runner.closing_round(share, plan)
    plan = Plan(plan.shapes, levels.kept)
    experts = count_experts(levels, run.geometry)
    if experts and rank() == 0 and (line := experts.sentence()):
        sys.stderr.write(f"lightstride: {line}\n")
    smaller: WeightSource = CutSource(run.source, levels)
    if not run.source.streamed:
        smaller = Resident(materialize(run.model, run.adapter, levels), run.source.device)
    numbers = measure(run, smaller, plan, name)
    if run.config.heal:
        numbers |= heal_and_measure(run, smaller.model, plan, name) | {
            "unhealed": numbers.get("perplexity")
        }
    numbers |= {
        "asked": share,
        "folder": str(folder),
        "rounds": [result.summary() for result in results],
        **({"experts": experts.numbers()} if experts else {}),
    }
    if rank() == 0:
        record = {
            "kind": "prune",
            "plan": plan.to_json(),
            "numbers": numbers,
            "config": run.config.as_dict(),
            "data": run.texts.record,
        }
        write_sealed(note, numbers)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with runner.clock("saving"):
            save_checkpoint(smaller, run.tokenizer, folder, record=record)
        for part in ("closing", "healing"):
            shutil.rmtree(runner.work / f"{part}-{name}", ignore_errors=True)
    barrier()
    return numbers


def read_note(note: Path) -> Numbers:
    """The numbers of a size that is finished; WorkError where they are damaged."""
    found = read_sealed(note, Numbers, WorkError)
    try:
        msgspec.convert(found, SizeNote)
    except msgspec.ValidationError as error:
        raise WorkError(f"{note} is damaged: delete it ({error})") from error
    return found


def heal_and_measure(run: PruneRun, smaller: PreTrainedModel, plan: Plan, name: str) -> Numbers:
    """Train the smaller model towards the dense one, and measure it again."""
    runner, config = run.runner, run.config
    healing = Healing(passes=config.heal, learning_rate=config.heal_rate, seed=config.seed)
    folder = runner.work / f"healing-{name}"
    with runner.clock("healing"):
        heal(
            smaller,
            run.model,
            run.adapter,
            runner.calibration_NL,
            healing,
            folder,
            title=f"healing {name}",
            progress=True,
        )
    return measure(run, Resident(smaller), plan, name)


def measure(run: PruneRun, source: WeightSource, plan: Plan, name: str) -> Numbers:
    """Size of a model and its perplexity on the held-out text; on rank 0."""
    if rank() > 0:
        return {}
    parameters = list(empty_with_widths(source.model, source.shapes).parameters())
    folder = run.runner.spill_folder
    with run.runner.clock("perplexities"):
        held_out = perplexity(
            source if source.streamed else source.model,
            run.texts.held_out,
            batch_size=4,
            spill=None if folder is None else Spill(folder),
            progress=True,
        )
    return {
        "name": name,
        "sparsity": sparsity(plan, run.geometry),
        "parameters": sum(each.numel() for each in parameters),
        "block_parameters": num_parameters(plan, run.geometry),
        "bytes": sum(each.numel() for each in parameters) * source.model.dtype.itemsize,
        "perplexity": held_out.value,
        "plan": plan.key,
    }


def sizes_table(rows: Sequence[Numbers]) -> str:
    """Sizes and perplexities of all models, as a Markdown table."""
    cells = []
    for row in rows:
        assert isinstance(row["parameters"], int)
        assert isinstance(row["sparsity"], float)
        assert isinstance(row["perplexity"], float)
        cells.append(
            [
                str(row.get("folder", "before")),
                f"{row['parameters'] / 1e6:,.1f} M",
                f"{100 * row['sparsity']:.2f}%",
                f"{row['perplexity']:.2f}",
            ]
        )
    return markdown_table(["model", "parameters", "sparsity", "perplexity"], cells)


@contextmanager
def generations_bar(title: str) -> Iterator[OnGeneration[Plan]]:
    """A bar of generations on stderr, with the time left and the best fitness."""
    with Bar(desc=title, unit="generation", disable=rank() > 0) as progress:

        def show(report: GenerationReport[Plan]) -> None:
            progress.total = report.generations
            progress.set_postfix(best=f"{report.fitness:.4f}", tokens=report.tokens)
            progress.update()

        yield show
