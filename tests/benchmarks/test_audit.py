"""benchmarks/audit.py: licenses are listed, and a network that is not there is one line."""

import subprocess

import pytest

from helpers.benchmark import load_benchmark

audit = load_benchmark("audit")

FOUND = (
    '{"dependencies": [{"name": "safe", "version": "1", "vulns": []}, {"name": "old", '
    '"version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}]}'
)


def answer(monkeypatch: pytest.MonkeyPatch, out: str, err: str = "") -> None:
    done = subprocess.CompletedProcess([], 1, out, err)
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: done)


def test_every_pinned_package_that_is_installed_has_a_license() -> None:
    rows = audit.licenses(audit.pins(audit.CONSTRAINTS))
    assert {"torch", "transformers", "msgspec"} <= {name for name, _, _ in rows}
    assert {name: told for name, _, told in rows}["transformers"].startswith("Apache")


def test_without_a_network_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, "", "INFO:pip_audit\nERROR: could not connect to the vulnerability feed\n")
    assert audit.main([]) == 0
    said = capsys.readouterr()
    assert "| torch" in said.out
    assert said.err == (
        "audit: vulnerabilities were not looked up: ERROR: could not connect to the "
        "vulnerability feed\n"
    )


def test_what_is_found_is_told_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, FOUND)
    assert audit.main([]) == 1
    assert capsys.readouterr().out.endswith("old 2: PYSEC-1, mended in 3\n")
