"""The command lines that read what was damaged, by a name; `{home}` is the folder of one kind."""

from collections.abc import Mapping

FAMILIES = ("gemma3", "phi3", "qwen3", "opt", "granite", "olmo2", "mistral", "qwen2")
TOKENIZERS = ("bpe", "unigram", "wordlevel", "wordpiece")
EACH_FAMILY = tuple(f"generate {name}" for name in FAMILIES)
EACH_TOKENIZER = tuple(f"generate {name}" for name in TOKENIZERS)
SMALL = "--preset demo --device cpu --dtype float32 --json"
COMMANDS: Mapping[str, str] = {
    "generate": "generate {home}/model -p ab --max-new-tokens 2 --json",
    "generate cut": "generate {home}/cut -p ab --max-new-tokens 2 --json",
    "generate file": "generate {home}/a.gguf -p ab --max-new-tokens 2 --json",
    "export": "export {home}/model -o {home}/out.gguf --to gguf --json",
    "perplexity": "evaluate {home}/model --perplexity {home}/texts.jsonl --window 16 "
    "-o {home}/out --json",
    "parquet": "evaluate {home}/model --perplexity {home}/texts.parquet --window 16 "
    "-o {home}/out --json",
    "text": "evaluate {home}/model --perplexity {home}/texts.txt --window 16 -o {home}/out --json",
    "packed": "evaluate {home}/model --perplexity {home}/texts.jsonl.gz --window 16 "
    "-o {home}/out --json",
    "fidelity": "evaluate {home}/model --against {home}/model --fidelity {home}/texts.jsonl "
    "--window 16 --every 8 -o {home}/out --json",
    "loops": "evaluate {home}/model --against {home}/model --loops {home}/prompts.jsonl "
    "-o {home}/out --json",
    "tasks": "evaluate {home}/model --tasks arc_easy --task-data {home} --limit 2 "
    "-o {home}/out --json",
    "answers of tasks": "evaluate {home}/model --tasks gsm8k --task-data {home} --limit 1 "
    "--num-fewshot 1 -o {home}/out --json",
    "doctor": "doctor {home}/model --json",
    "serve": "serve {home}/model --port 0 --json",
    "forecast": "prune {home}/model -o {home}/out --sparsity 0.3 --multiple 8 --dry-run "
    "--machine h100 --json",
    "prune": "prune {home}/model -o {home}/out --sparsity 0.5 --calibration {home}/texts.jsonl "
    "--window 16 --calibration-tokens 64 --search-tokens 64 --held-out-tokens 64 --search none "
    f"--rounds 1 --multiple 8 --work {{home}}/out.work {SMALL}",
    "prune on": "prune {home}/model -o {home}/out --sparsity 0.3 0.5 --resume "
    "--calibration {home}/texts.jsonl --window 16 --calibration-tokens 64 --search-tokens 64 "
    "--held-out-tokens 64 --rounds 1 --generations 2 --offspring 4 --multiple 8 "
    f"--work {{home}}/work {SMALL}",
    "smash on": "smash {home}/model -o {home}/out --prompts {home}/prompts.jsonl --resume "
    "--answer-tokens 6 --held-out 0.3 --steps 2 --row-tokens 48 --max-segment 2 "
    f"--work {{home}}/work {SMALL}",
    "smash": "smash {home}/model -o {home}/out --prompts {home}/prompts.jsonl "
    "--answer-tokens 6 --held-out 0.3 --steps 1 --row-tokens 48 --max-segment 2 "
    f"--work {{home}}/out.work {SMALL}",
    "smash again": "smash {home}/model -o {home}/out --prompts {home}/prompts.jsonl "
    "--answer-tokens 6 --held-out 0.3 --steps 1 --row-tokens 48 --max-segment 2 "
    f"--start-from {{home}}/grafts --work {{home}}/out.work {SMALL}",
    "take head": f"smash {{home}}/model -o {{home}}/out --from-head {{home}}/head {SMALL}",
    "recover on": "recover {home}/model -o {home}/out --minutes 1 --text {home}/texts.jsonl "
    "--tokens 64 --held-out-tokens 64 --window 16 --passes 2 --step-tokens 32 --resume "
    "--work {home}/work --device cpu --dtype float32 --json",
    "recover": "recover {home}/model -o {home}/out --minutes 1 --text {home}/texts.jsonl "
    "--tokens 64 --held-out-tokens 64 --window 16 --passes 1 --step-tokens 64 "
    "--work {home}/out.work --device cpu --dtype float32 --json",
    "report": "report {home}/runs -o {home}/out.html --json",
    "cache": "cache --verify --json",
    "list cache": "cache --json",
    **{
        f"generate {name}": f"generate {{home}}/{name} -p ab --max-new-tokens 2 --json"
        for name in (*FAMILIES, *TOKENIZERS)
    },
}


def command_line(name: str, home: object) -> list[str]:
    """The words of a command in a folder."""
    return [word.replace("{home}", str(home)) for word in COMMANDS[name].split()]
