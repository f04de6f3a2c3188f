"""A wrong value of a flag: what was given and what is allowed, in our words."""

import shlex

import pytest

from lightstride import cli


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "prune m -o o --sparsity 25%",
            "--sparsity 25% is not allowed: it must be numbers, blanks between them",
        ),
        (
            "prune m --sparsity 0.25,0.5 -o o",
            "--sparsity 0.25,0.5 is not allowed: it must be numbers, blanks between them",
        ),
        (
            "bench m --batch 1,8",
            "--batch 1,8 is not allowed: it must be whole numbers, blanks between them",
        ),
        (
            "prune m -o o --sparsity 0.5 --heal yes",
            "--heal yes is not allowed: it must be a whole number",
        ),
        (
            "prune m -o o --sparsity 0.5 --damping=x",
            "--damping x is not allowed: it must be a number",
        ),
        (
            "generate m -p x --mode fast",
            "--mode fast is not allowed: it must be one of lossless, ar, trust",
        ),
        (
            "prune m -o o --sparsity 0.5 --dry-run --machine moon",
            "--machine moon is not allowed: it must be one or more of here, h100, 8xmi300x, "
            "laptop, blanks between them",
        ),
    ],
)
def test_a_wrong_value_is_named(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(shlex.split(line)) == 2
    assert capsys.readouterr().err == f"lightstride: error: {said}\n"
