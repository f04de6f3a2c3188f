"""Tasks of lm-eval: scored as there, with data at hand, or refused."""

import gzip
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import lm_eval.tasks
import pytest
import yaml
from huggingface_hub import constants
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from helpers.eval_tasks import WORDS, agree, decoder, questions
from helpers.toys import TINY, byte_tokenizer, tiny_llama
from lightstride.errors import ConfigError, DataError, NetworkError
from lightstride.evaluate import lm_harness as harness
from lightstride.evaluate.lm_harness import HarnessModel, load_tasks, offline_tasks, run_task
from lightstride.generate import PlainDecoder
from lightstride.smash.decode.decoder import SmashDecoder
from lightstride.smash.hub import SmashModel

RAW: Mapping[str, tuple[str, list[dict[str, object]], list[dict[str, object]]]] = {
    "arc_easy": (
        "arc/arc_easy.yaml",
        [
            {
                "question": "What gives light?",
                "choices": {"text": ["A lamp.", "A stone.", "Mud"], "label": ["A", "B", "C"]},
                "answerKey": "A",
            }
        ],
        [
            {
                "query": "Question: What gives light?\nAnswer:",
                "choices": ["A lamp.", "A stone.", "Mud"],
                "gold": 0,
            }
        ],
    ),
    "piqa": (
        "piqa/piqa.yaml",
        [{"goal": "dry a cup", "sol1": "use a towel", "sol2": "use a river", "label": 0}],
        [
            {
                "query": "Question: dry a cup\nAnswer:",
                "choices": ["use a towel", "use a river"],
                "gold": 0,
            }
        ],
    ),
    "openbookqa": (
        "openbookqa/openbookqa.yaml",
        [
            {
                "question_stem": "The sun is",
                "choices": {"text": ["a star", "a moon"], "label": ["A", "B"]},
                "answerKey": "A",
            }
        ],
        [{"query": "The sun is", "choices": ["a star", "a moon"], "gold": 0}],
    ),
    "winogrande": (
        "winogrande/default.yaml",
        [
            {
                "sentence": "Ann paid Sue, so _ was happy.",
                "option1": "Ann",
                "option2": "Sue",
                "answer": "2",
            }
        ],
        [
            {
                "query": "",
                "choices": ["Ann paid Sue, so Ann was happy.", "Ann paid Sue, so Sue was happy."],
                "gold": 1,
                "contexts": ["Ann paid Sue, so Ann", "Ann paid Sue, so Sue"],
                "continuation": "was happy.",
            }
        ],
    ),
    "hellaswag": (
        "hellaswag/hellaswag.yaml",
        [
            {
                "activity_label": "Rowing",
                "ctx_a": "A man sits in a boat.",
                "ctx_b": "he",
                "endings": ["rows.", "[step] flies  away."],
                "label": "0",
            }
        ],
        [
            {
                "query": "Rowing: A man sits in a boat. He",
                "choices": ["rows.", " flies away."],
                "gold": 0,
            }
        ],
    ),
}


def stock(one: PlainDecoder) -> HFLM:
    """lm-eval's own model over the same weights: a full row for every choice."""
    return HFLM(pretrained=one.model, tokenizer=one.tokenizer, backend="causal", batch_size=4)


def instances(pairs: Sequence[tuple[str, str]]) -> list[Instance]:
    return [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i)
        for i, pair in enumerate(pairs)
    ]


def write_lines(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def choices_data(count: int) -> list[dict[str, object]]:
    draw = random.Random(1)
    return [
        {
            "query": " ".join(draw.choices(WORDS, k=5)),
            "choices": [" ".join(draw.choices(WORDS, k=draw.randint(1, 3))) for _ in range(3)],
            "gold": draw.randrange(3),
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize("family", TINY)
def test_shared_contexts_score_as_whole_rows_do(family: str) -> None:
    one = decoder(family)
    requests = instances(questions())
    ours = HarnessModel(one, batch_tokens=150).loglikelihood(requests, disable_tqdm=True)
    agree(ours, stock(one).loglikelihood(requests, disable_tqdm=True))


def test_a_smashed_model_scores_as_its_base_and_generates_by_its_own_decoder() -> None:
    base = tiny_llama(tied=False)
    one = SmashDecoder(SmashModel.graft(base), byte_tokenizer())
    requests = instances(questions(3))
    model = HarnessModel(one, batch_tokens=100)
    plain = stock(PlainDecoder(base, one.tokenizer))
    agree(
        model.loglikelihood(requests, disable_tqdm=True),
        plain.loglikelihood(requests, disable_tqdm=True),
    )
    arguments = ("a light", {"until": ["\n\n"], "max_gen_toks": 9})
    request = Instance(request_type="generate_until", doc={}, arguments=arguments, idx=0)
    assert model.generate_until([request], disable_tqdm=True)[0]
    assert 0 < model.macro_steps <= model.generated_tokens <= 9


def test_long_contexts_lose_their_beginning_as_in_lm_eval() -> None:
    one = decoder()
    requests = instances([("light " * 20, " stride"), ("light " * 20, " a"), ("a", " b")])
    plain = stock(one)
    plain._max_length = 30
    model = HarnessModel(one)
    model._max_length = 30
    agree(
        model.loglikelihood(requests, disable_tqdm=True),
        plain.loglikelihood(requests, disable_tqdm=True),
    )


def test_rolling_text_scores_as_in_lm_eval() -> None:
    one = decoder()
    text = " ".join(WORDS * 4)
    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
    ours, plain = HarnessModel(one), stock(one)
    ours._max_length = plain._max_length = 50
    assert ours.loglikelihood_rolling([request]) == pytest.approx(
        plain.loglikelihood_rolling([request]), abs=1e-3
    )


@pytest.mark.parametrize("name", ["arc_easy", "boolq"])
def test_a_task_scores_as_in_lm_eval(name: str, tmp_path: Path) -> None:
    write_lines(tmp_path / f"{name}.jsonl", choices_data(12))
    one = decoder()
    results = [
        run_task(model, name, load_tasks([name], task_data=tmp_path)[name])
        for model in (HarnessModel(one), stock(one))
    ]
    assert results[0] == results[1]
    assert len(results[0].items) == results[0].num_items == 12
    assert results[0].headline.value == pytest.approx(sum(results[0].items) / 12)
    assert results[0].headline.stderr > 0
    assert results[0].chance == pytest.approx(1 / 3)
    assert results[0].metric == ("acc,none" if name == "boolq" else "acc_norm,none")


@pytest.mark.parametrize("name", RAW)
def test_local_data_gives_the_stock_prompts(name: str, tmp_path: Path) -> None:
    definition, raw, ours = RAW[name]
    write_lines(tmp_path / "raw.jsonl", raw)
    write_lines(tmp_path / "zeroshot" / f"{name}.jsonl.gz", ours)
    path = Path(lm_eval.tasks.__file__).parent / definition
    splits = ("training_split", "validation_split", "test_split")
    config = {
        "include": str(path),
        "task": "stock",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "raw.jsonl")}},
        **{key: "test" for key in splits if key in path.read_text()},
    }
    (tmp_path / "local.yaml").write_text(yaml.safe_dump(config))
    manager = TaskManager(include_defaults=False)
    theirs = manager.load([str(tmp_path / "local.yaml")])["tasks"]["stock"]
    theirs.set_config("num_fewshot", 0)
    mine = load_tasks([name], task_data=tmp_path)[name]
    requests = []
    for task in (theirs, mine):
        task.build_all_requests(limit=None)
        requests.append([instance.args for instance in task.instances])
    assert requests[0] == requests[1]
    answers = [(-1.0, False), (-2.0, False), (-9.0, False)][: len(requests[0])]
    docs = [next(iter(task.eval_docs)) for task in (theirs, mine)]
    assert theirs.process_results(docs[0], answers) == mine.process_results(docs[1], answers)


def test_generation_is_that_of_lm_eval(tmp_path: Path) -> None:
    lines = [{"question": f"{n} + {n}", "answer": f"... #### {2 * n}"} for n in range(6)]
    write_lines(tmp_path / "instruct" / "gsm8k_train.jsonl.gz", lines)
    write_lines(tmp_path / "instruct" / "gsm8k_test.jsonl.gz", lines[:3])
    one = decoder()
    outputs = []
    for model in (HarnessModel(one, batch_tokens=100), stock(one)):
        task = load_tasks(["gsm8k"], task_data=tmp_path, num_fewshot=1)["gsm8k"]
        task.set_config("generation_kwargs", {"until": ["ab"], "max_gen_toks": 20})
        result = run_task(model, "gsm8k", task)
        outputs.append([instance.resps[0] for instance in task.instances])
        assert result.chance is None
        assert result.num_items == 3
        assert result.metric == "exact_match,strict-match"
    assert outputs[0] == outputs[1]
    assert any(outputs[0])


def test_what_a_task_asks_of_generation_is_kept_or_refused() -> None:
    settings = harness.generation_settings(
        {"until": ["\n"], "do_sample": True, "temperature": 0.5, "top_p": 0.9}, 7
    )
    assert (settings.max_new_tokens, settings.temperature, settings.top_p) == (7, 0.5, 0.9)
    with pytest.raises(ConfigError, match="num_beams"):
        harness.generation_settings({"num_beams": 4}, 7)


class Unreachable:
    """lm-eval's task manager on a machine without a network."""

    all_tasks = ("arc_easy",)

    def load(self, names: list[str]) -> None:
        raise ConnectionError(f"no network for {names}")


def test_hub_tasks_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "TaskManager", Unreachable)
    with pytest.raises(ConfigError, match="lm-eval has no task arc_simple"):
        load_tasks(["arc_simple"])
    with pytest.raises(NetworkError, match="--task-data FOLDER reads arc_challenge"):
        load_tasks(["arc_easy"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(harness, "is_local", lambda place: True)
    monkeypatch.setattr(Unreachable, "load", None)
    with pytest.raises(NetworkError, match="cannot be fetched"):
        load_tasks(["arc_easy"])


def test_mistakes_are_named(tmp_path: Path) -> None:
    assert "winogrande" in offline_tasks()
    with pytest.raises(ConfigError, match="no local definition of task 'mmlu'"):
        load_tasks(["mmlu"], task_data=tmp_path)
    with pytest.raises(DataError, match=r"no piqa\.jsonl"):
        load_tasks(["piqa"], task_data=tmp_path)
