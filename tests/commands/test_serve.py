"""`lightstride serve` as a process: ready, real toys, signals; and one line for a mistake."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from helpers.memory_toys import mixed_memory
from helpers.smash_folders import save_folders
from lightstride import cli
from lightstride.checkpoint import open_decoder
from lightstride.config.decoding import Settings
from lightstride.generate import generate
from lightstride.memory.plan_files import MemoryFile, write_plans
from lightstride.smash.decode.decoder import SmashDecoder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_folders(tmp_path_factory.mktemp("toys"))


@contextmanager
def process(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address once it is ready.

    It has one thread: toys gain nothing by two, which wait for each other on a busy machine.
    """
    command = [sys.executable, "-m", "lightstride", "serve", *map(str, arguments), "--port", "0"]
    pipe, alone = subprocess.PIPE, {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=pipe, stdout=pipe, text=True, env=alone) as run:
        try:
            assert run.stderr is not None
            for line in run.stderr:
                if found := re.search(r"serving .* on (http://\S+)", line):
                    yield run, found[1]
                    break
            else:
                raise AssertionError("it ended before it was ready")
        finally:
            run.kill()


def test_a_smashed_model_beside_its_base(folders: tuple[Path, Path]) -> None:
    with process(*folders, "--json", "--grace", 1, "--dtype", "float32") as (run, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["base", "smashed"]

        def ask(model: str, **extra: object):
            return client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "hello"}],
                max_tokens=24,
                seed=1,
                logprobs=extra.get("mode") != "trust",
                extra_body={"ignore_eos": True, **extra},
            )

        plain = ask("base")
        for mode in ("lossless", "ar"):
            answer = ask("smashed", mode=mode)
            assert answer.choices[0].message == plain.choices[0].message
            told = [one.logprob for one in answer.choices[0].logprobs.content]
            assert told == pytest.approx(
                [one.logprob for one in plain.choices[0].logprobs.content], abs=1e-4
            )
        assert ask("smashed", mode="trust").usage.completion_tokens == 24
        assert ask("smashed", mode="trust").usage.kv_entries <= 24
        run.send_signal(signal.SIGTERM)
        assert run.stdout is not None
        document = json.loads(run.stdout.read())
        assert document["models"] == ["base", "smashed"]
        assert run.wait(20) == 0


def test_each_request_has_the_memory_plan_that_it_names(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    _, smashed = save_folders(tmp_path_factory.mktemp("plans"))
    decoder = open_decoder(str(smashed))
    assert isinstance(decoder, SmashDecoder)
    memory = mixed_memory(decoder.model.base, 1)
    write_plans(smashed, MemoryFile({0.5: memory.plan}, 0.5, memory.scores), {})
    settings = Settings(max_new_tokens=40, mode="lossless", ignore_end_tokens=True)
    prompt = list(range(60))
    expected = {
        kv: generate(open_decoder(str(smashed), kv=kv), [prompt], settings)[0] for kv in (1, 0.5)
    }
    assert expected[1].tokens != expected[0.5].tokens
    flags = ("--grace", 1, "--dtype", "float32", "--kv-entries", 400)
    with process(smashed, *flags) as (_, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        (listed,) = client.models.list()
        assert listed.lightstride["kv"] == [1, 0.5]
        assert listed.lightstride["default_kv"] == 0.5

        def ask(**extra: float) -> openai.types.Completion:
            return client.completions.create(
                model="smashed",
                prompt=prompt,
                max_tokens=40,
                extra_body={"ignore_eos": True, "mode": "lossless", **extra},
            )

        asked = [{"kv": 1}, {"kv": 0.5}, {}, {"kv": 1}, {"kv": 0.5}, {"kv": 1}] * 2
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = list(pool.map(lambda extra: ask(**extra), asked))
        for extra, answer in zip(asked, answers, strict=True):
            same = expected[extra.get("kv", 0.5)]
            assert answer.choices[0].text == same.text
            assert answer.usage is not None
            assert answer.usage.kv_entries <= same.kv_entries + 1
        assert ask(kv=1).usage.prompt_tokens_details.cached_tokens == 48
        assert ask(kv=0.5).usage.prompt_tokens_details.cached_tokens == 0
        with pytest.raises(openai.BadRequestError, match=r"shares of its KV entries: 1, 0\.5"):
            ask(kv=0.25)


def test_answers_of_others_make_fewer_steps_and_the_same_text(folders: tuple[Path, Path]) -> None:
    flags = ("--grace", 0, "--dtype", "float32", "--shared-lookups", "1MiB")
    with process(folders[1], *flags) as (_, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        answers = [
            client.completions.create(
                model="smashed",
                prompt=[1, 2, 3],
                max_tokens=60,
                temperature=1.5,
                seed=3,
                extra_body={"ignore_eos": True, "mode": mode},
            )
            for mode in ("ar", "lossless")
        ]
        one, other = (each.choices[0].text for each in answers)
        assert one == other
        steps = [each.metrics["speculative_decoding"]["num_spec_steps"] for each in answers]
        assert steps[0] == 60
        assert steps[1] < 20
        meters = httpx.get(f"{url}/metrics").text
    found = {
        name: float(line.rsplit(" ", 1)[1])
        for line in meters.splitlines()
        for name in ("bytes", "tokens")
        if line.startswith(f"lightstride:shared_lookup_{name}{{")
    }
    assert 0.99 * 2**20 < found["bytes"] <= 2**20
    assert found["tokens"] == 2 * 61


def test_a_signal_ends_streams_properly(folders: tuple[Path, Path]) -> None:
    body = {
        "model": "base",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 480,
        "stream": True,
        "ignore_eos": True,
        "n": 16,
    }
    with process(folders[0], "--grace", 0) as (run, url):
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as stream:
            lines = stream.iter_lines()
            for _ in range(40):
                next(lines)
            run.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert rest[-1] == "data: [DONE]"
        assert run.wait(20) == 0


def test_an_answer_may_end_within_the_grace(folders: tuple[Path, Path]) -> None:
    body = {
        "model": "base",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 60,
        "stream": True,
        "ignore_eos": True,
    }
    with process(folders[0], "--grace", 60) as (run, url):
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            run.send_signal(signal.SIGINT)
            rest = [line for line in lines if line]
        assert '"finish_reason":"length"' in rest[-2]
        assert rest[-1] == "data: [DONE]"
        assert run.wait(20) == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("{base} --host 0.0.0.0", "used with --api-key or LIGHTSTRIDE_API_KEY"),
        ("{base} --host 0.0.0.0 --api-key=", "at least one character"),
        ("{base} --host no.such.host.example --api-key x", "cannot listen on"),
        ("{base} --port 70000", "between 0 and 65535"),
        ("{base} --port {taken}", "Address already in use"),
        ("{base} --rows 0", "must be"),
        ("{base} --kv-entries 0", "must be"),
        ("{base} --mode trust", "no served model has it"),
        ("{base} --mode fast", "--mode"),
        ("{base} --shared-lookups 64MiB", "no served model has the mode lossless"),
        ("{smashed} --shared-lookups lots", "a size such as"),
        ("{smashed} --mode trust --exact", "exact is for the modes lossless and ar"),
        ("{smashed} --mode lossless --kv-dtype int8 --exact", "exact is for the full cache"),
        ("{base} --kv 0.5", "no served model has a memory plan"),
        ("{base} --kv 2", "above 0 and at most 1"),
        ("{base} --kv-dtype int4", "--kv-dtype"),
        ("{base} {base}", "named once each"),
        ("{base}/none", "none"),
        ("owner/name", "owner/name"),
        ("", "MODEL"),
    ],
)
def test_a_mistake_is_one_line(
    folders: tuple[Path, Path], flags: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = flags.format(base=folders[0], smashed=folders[1], taken=port).split()
        if "--port" not in words:
            words += ["--port", "0"]
        assert cli.main(["serve", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lightstride: error: ")
    assert err.count("\n") == 1, err
    assert said in err
