"""From sources of prompts to examples: asked, answered, scored, each stage resumable."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from lightstride.config import SmashRunConfig
from lightstride.data.chat import Prompt, read_prompts
from lightstride.distributed import barrier, rank
from lightstride.errors import DataError
from lightstride.generate import PlainDecoder
from lightstride.models.folders import whole_file
from lightstride.smash.answers import read_answers, regenerate
from lightstride.smash.examples import SCORES, Example, load_examples
from lightstride.smash.prompts import self_prompts
from lightstride.smash.scores import score

SELF = "self"
TEMPERATURE = 0.8
LEAST_ANSWERS = 8


def prepare_examples(config: SmashRunConfig, decoder: PlainDecoder) -> list[Example]:
    """The examples of all prompts, made by the first process and read by all."""
    folder = Path(config.answers_folder)
    if rank() == 0:
        prompts = all_prompts(config, decoder, folder)
        assert config.answer_tokens is not None
        regenerate(
            decoder,
            prompts,
            folder,
            max_new_tokens=config.answer_tokens,
            sampled_share=config.sampled_share,
            temperature=TEMPERATURE,
            batch_size=config.answer_batch,
            seed=config.seed,
            progress=True,
        )
        score(decoder.model, read_answers(folder), folder / SCORES, progress=True)
        names = json.dumps(sorted(prompt.id for prompt in prompts))
        with whole_file(Path(config.work_folder) / "chosen.json") as partial:
            partial.write_text(names, "utf-8")
    barrier()
    chosen = set(json.loads((Path(config.work_folder) / "chosen.json").read_text("utf-8")))
    examples = [e for e in load_examples(folder) if e.id in chosen and len(e.answer_A)]
    if len(examples) < LEAST_ANSWERS:
        raise DataError(
            f"{len(examples)} answers are too few; give {LEAST_ANSWERS} prompts or more"
        )
    return examples


def all_prompts(config: SmashRunConfig, decoder: PlainDecoder, folder: Path) -> list[Prompt]:
    """The prompts of all sources; those the model writes itself are as many as a source's share."""
    sources = [source.strip() for source in config.prompts.split(",") if source.strip()]
    files = [source for source in sources if source != SELF]
    assert config.num_prompts is not None
    own = config.num_prompts // len(sources) if SELF in sources else 0
    prompts: list[Prompt] = []
    if own:
        prompts = self_prompts(
            decoder.model,
            decoder.tokenizer,
            own,
            seed=config.seed,
            batch_size=config.answer_batch,
            folder=folder / SELF,
            progress=True,
        )
    if files:
        prompts += read_prompts(files, limit=config.num_prompts - own, seed=config.seed)
    return list({prompt.id: prompt for prompt in prompts}.values())


def digest(examples: Sequence[Example]) -> str:
    """A hash of all prompts and answers."""
    found = hashlib.sha256()
    for each in examples:
        found.update(json.dumps([each.id, each.prompt_P.tolist(), each.answer_A.tolist()]).encode())
    return found.hexdigest()[:16]
