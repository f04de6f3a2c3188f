"""`lightstride export --to sliding`: plain transformers does what a memory plan by block says."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from helpers.smash_toys import toy, uneven_llama
from helpers.toys import TINY, byte_tokenizer, tiny_llama, tiny_qwen2
from lightstride.checkpoint import open_decoder, save_checkpoint
from lightstride.cli import main
from lightstride.commands.smash import smash
from lightstride.config import SmashRunConfig
from lightstride.generate import Settings, generate
from lightstride.memory.cache import full_plan
from lightstride.memory.fitness import logits_of
from lightstride.memory.masked import masked_hidden
from lightstride.memory.plan import ALL, Keep, MemoryPlan
from lightstride.memory.plan_files import MemoryFile, read_plans, write_plans
from lightstride.models.opening.load import load_model

SLIDE = Keep(0, 24, choice="slide")


def planned(
    model: PreTrainedModel, keeps: Sequence[Keep | tuple[Keep, ...]], folder: Path
) -> tuple[Path, MemoryPlan]:
    """A smashed model with a plan: what each block keeps, or each head of it."""
    grafted = toy(model)
    grafted.config.base = str(folder / "base")
    save_checkpoint(model, byte_tokenizer(), folder / "base")
    save_checkpoint(grafted, byte_tokenizer(), folder / "smashed")
    full = full_plan(load_model(str(folder / "base")))
    blocks = tuple(
        keep if isinstance(keep, tuple) else (keep,) * len(block)
        for keep, block in zip(keeps, full.blocks, strict=True)
    )
    plan = replace(full, blocks=blocks)
    write_plans(folder / "smashed", MemoryFile({0.5: plan}, 0.5), {})
    return folder / "smashed", plan


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_plain_transformers_says_what_the_masked_text_says(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"sliding_window": None} if family == "mistral" else {}
    model = TINY[family](num_layers=3, **settings)
    source, plan = planned(model, (ALL, SLIDE, SLIDE), tmp_path)
    output = tmp_path / "plain"
    assert main(["export", str(source), "-o", str(output), "--to", "sliding", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["sliding_window"] == 24
    assert said["layer_types"] == ["full_attention", "sliding_attention", "sliding_attention"]
    plain = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    assert type(plain).__module__.startswith("transformers.")
    tokens_T = torch.randint(0, 256, (90,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted_TV = logits_of(model, masked_hidden(model, tokens_T, plan))
        found_TV = plain(tokens_T[None]).logits[0]
        short = plain(tokens_T[None, :70], use_cache=True)
        step = plain(tokens_T[None, 70:71], past_key_values=short.past_key_values)
    torch.testing.assert_close(found_TV, wanted_TV, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(step.logits[0, 0], wanted_TV[70], atol=2e-4, rtol=1e-3)
    assert not torch.allclose(wanted_TV[60:], model(tokens_T[None]).logits[0, 60:], atol=1e-3)
    lengths = [layer.keys.shape[-2] for layer in step.past_key_values.layers]
    assert lengths == [keeps[0].entries(71, plan.sinks) for keeps in plan.blocks] == [71, 23, 23]


def test_a_searched_plan_by_block_goes_all_the_way(tmp_path: Path) -> None:
    base, grafts, smashed = (tmp_path / name for name in ("base", "grafts", "smashed"))
    model = tiny_qwen2(num_layers=3)
    save_checkpoint(model, byte_tokenizer(), base)
    grafted = toy(model)
    grafted.config.base = str(base)
    save_checkpoint(grafted, byte_tokenizer(), grafts)
    smash(
        SmashRunConfig(
            model=str(grafts), output=str(smashed), kv=(0.6,), kv_by="block", kv_context=320
        )
    )
    file = read_plans(smashed)
    assert file is not None
    assert file.scores is None
    plan = file.plans[0.6]
    assert all(len({*block}) == 1 for block in plan.blocks)
    assert len({keep for block in plan.blocks for keep in block if keep != ALL}) == 1
    assert plan.share(320) <= 0.6
    output = tmp_path / "plain"
    assert main(["export", str(smashed), "-o", str(output), "--to", "sliding"]) == 0
    plain = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    prompt = list(range(65, 90)) * 12
    settings = Settings(max_new_tokens=24, mode="lossless", ignore_end_tokens=True)
    ours = generate(open_decoder(str(smashed)), [prompt], settings)[0].tokens
    theirs = plain.generate(
        torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None
    )
    assert theirs[0, len(prompt) :].tolist() == list(ours)


@pytest.mark.parametrize(
    ("family", "keeps", "reason"),
    [
        ("llama", (ALL, (ALL, SLIDE)), "decides head by head"),
        ("llama", (ALL, Keep(0, 32)), "decides head by head"),
        ("llama", (SLIDE, Keep(0, 48, choice="slide")), "one size of window"),
        ("gemma3", (ALL, SLIDE, SLIDE), "sliding windows of its own"),
        ("mistral", (ALL, SLIDE), "sliding windows of its own"),
        ("granite", (ALL, SLIDE), "no class of transformers gives blocks of granite"),
    ],
)
def test_what_no_config_says_is_one_line(
    family: str,
    keeps: tuple[Keep | tuple[Keep, ...], ...],
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {"sliding_window": 64} if family == "mistral" else {}
    source, _ = planned(TINY[family](**settings), keeps, tmp_path)
    output = tmp_path / "plain"
    assert main(["export", str(source), "-o", str(output), "--to", "sliding"]) == 2
    assert reason in capsys.readouterr().err
    assert not output.exists()


def test_uneven_widths_and_no_plan_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = planned(uneven_llama(), (ALL, SLIDE), tmp_path)
    output = tmp_path / "plain"
    arguments = ["-o", str(output), "--to", "sliding"]
    assert main(["export", str(source), *arguments]) == 2
    assert "the blocks differ in width" in capsys.readouterr().err
    assert main(["export", str(source), *arguments, "--kv", "1"]) == 2
    assert "keeps the full cache" in capsys.readouterr().err
    assert main(["export", str(source), *arguments, "--kv", "0.3"]) == 2
    assert "--kv 0.3 is not among" in capsys.readouterr().err
    save_checkpoint(tiny_llama(), byte_tokenizer(), tmp_path / "dense")
    assert main(["export", str(tmp_path / "dense"), *arguments]) == 2
    assert "has no memory plan to write" in capsys.readouterr().err
    assert main(["export", str(source), "-o", str(output), "--kv", "0.5"]) == 2
    assert "left out without --to sliding" in capsys.readouterr().err
