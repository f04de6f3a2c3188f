"""`lightstride serve` as a process: ready, real toys, signals; and one line for a mistake."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from helpers.smash_folders import save_folders
from lightstride import cli


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_folders(tmp_path_factory.mktemp("toys"))


@contextmanager
def process(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address once it is ready."""
    command = [sys.executable, "-m", "lightstride", "serve", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
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
        assert ask("smashed", mode="verify").usage.kv_entries <= 24
        run.send_signal(signal.SIGTERM)
        assert run.stdout is not None
        document = json.loads(run.stdout.read())
        assert document["models"] == ["base", "smashed"]
        assert run.wait(20) == 0


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
        ("{base} --rows 0", "at least 1"),
        ("{base} --kv-entries 0", "at least 1"),
        ("{base} --mode trust", "no served model has it"),
        ("{base} --mode fast", "--mode"),
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
        words = flags.format(base=folders[0], taken=port).split()
        if "--port" not in words:
            words += ["--port", "0"]
        assert cli.main(["serve", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lightstride: error: ")
    assert err.count("\n") == 1, err
    assert said in err
