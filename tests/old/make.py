"""Write the files of this folder: with the package as it was at commit 502c339, and only then.

    PYTHONPATH=<that commit>/src python make.py

Its imports are that commit's.  `tests/test_old_files.py` opens what it wrote with today's package.
"""

import json
import shutil
from pathlib import Path
from random import Random

import torch
from lightstride.models.load import load_model
from lightstride.models.tiny import byte_tokenizer, tiny_llama
from lightstride.prune.supernet import build_supernet
from lightstride.smash.config import SmashConfig

from lightstride import cli
from lightstride.checkpoint import open_decoder, save_checkpoint
from lightstride.generate import Settings, generate
from lightstride.models.families import adapter_for
from lightstride.models.shapes import AttentionShape, FFNShape
from lightstride.smash.model import SmashModel

WORDS = ("the", "of", "and", "to", "in", "is", "was", "for", "on", "that", "with", "as", "by")
LIKELY = [7, 11, 65, 66, 150]
TOKENS = torch.arange(40, 60)[None]
PROMPT = [72, 101, 108, 108, 111]


def make_inputs() -> None:
    model = tiny_llama(hidden_size=16, num_channels=24, tied=False)
    head = model.get_output_embeddings()
    with torch.no_grad():
        kept = head.weight[LIKELY].clone()
        head.weight.mul_(0.05)
        head.weight[LIKELY] = 3 * kept
    save_checkpoint(model, byte_tokenizer(), Path("dense"))
    random = Random(0)
    lines = [
        json.dumps({"text": " ".join(random.choice(WORDS) for _ in range(40)) + f" {number}"})
        for number in range(40)
    ]
    Path("text.jsonl").write_text("\n".join(lines), "utf-8")
    prompts = [json.dumps({"prompt": f"what is {n} and {n * 7 % 13}?"}) for n in range(24)]
    Path("prompts.jsonl").write_text("\n".join(prompts) + "\n", "utf-8")


def prune(name: str, *flags: str) -> None:
    """A whole run; what it leaves is kept as it stands, without the result's own facts."""
    numbers = "--calibration-tokens 512 --search-tokens 512 --held-out-tokens 256 --window 32"
    line = f"prune dense -o {name} --sparsity 0.4 --preset demo --calibration text.jsonl {numbers}"
    line += " --rounds 2 --generations 2 --offspring 4 --multiple 8 --device cpu --dtype float32"
    assert cli.main([*line.split(), *flags]) == 0


def smash(name: str, *flags: str) -> None:
    line = f"smash dense -o {name} --prompts prompts.jsonl --preset demo --steps 4 --device cpu"
    line += " --answer-tokens 12 --row-tokens 80 --held-out 0.2 --max-segment 3 --dtype float32"
    assert cli.main([*line.split(), *flags]) == 0


def make_supernet() -> None:
    model = load_model("dense")
    adapter = adapter_for(model.config)
    tokens = torch.randint(256, (8, 16), generator=torch.Generator().manual_seed(0))
    shapes = {
        site: [AttentionShape(1, 1), AttentionShape(2, 2)]
        if site.kind == "attention"
        else [FFNShape(8), FFNShape(16), FFNShape(24)]
        for site in adapter.geometry(model.config).sites
    }
    centre = {site: some[0] for site, some in shapes.items()}
    build_supernet(model, adapter, tokens, shapes, centre, Path("supernet"), relative=False)


def make_paper_grafts() -> None:
    base = load_model("dense")
    geometry = adapter_for(base.config).geometry(base.config)
    config = SmashConfig.paper(base.config, geometry, max_segment=3)
    config.micro_layers = 1
    torch.manual_seed(0)
    model = SmashModel.graft(base, config)
    with torch.no_grad():
        for graft in model.grafts():
            for parameter in graft.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    save_checkpoint(model, byte_tokenizer(), Path("paper"), record={"kind": "smashed"})


@torch.no_grad()
def expected(folder: str) -> dict[str, object]:
    """What today's package must say of a folder."""
    decoder = open_decoder(folder)
    modes = ("trust", "verify", "lossless") if isinstance(decoder.model, SmashModel) else ("ar",)
    answers = {}
    for mode in modes:
        settings = Settings(max_new_tokens=16, mode=mode, confidence=0.3)
        (answer,) = generate(decoder, [PROMPT], settings)
        answers[mode] = [list(step) for step in answer.steps]
    logits = decoder.model(TOKENS).logits[0, -1, :80].tolist()
    return {"logits": [round(value, 6) for value in logits], "answers": answers}


def main() -> None:
    make_inputs()
    prune("uneven")
    prune("even", "--target", "uniform")
    smash("thin")
    make_supernet()
    make_paper_grafts()
    folders = ("dense", "uneven", "even", "thin", "paper")
    found = {folder: expected(folder) for folder in folders}
    Path("expected.json").write_text(json.dumps(found), "utf-8")
    shutil.rmtree("even.work")
    for path in [*Path().glob("*/result.json"), *Path().glob("*/search.jsonl")]:
        if path.parent.suffix != ".work":
            path.unlink()


if __name__ == "__main__":
    main()
