# Two commands on a fresh clone: `make demo` and `make test`. Each makes .venv first; nothing else is needed but Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One more than there are cores, up to 5: tests of kills and of several processes wait much of their time.
WORKERS := $(shell $(PYTHON) -c "import os; print(min(5, 1 + len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 3))")

.PHONY: help demo install dev test lint types tests test-core test-slow pages gpu mutants clean

help:
	@echo "make demo       install, train on the digits that ship, sample 64, score (3 minutes on two cores)"
	@echo "make test       install for development, then lint, types and tests (8 minutes on two cores)"
	@echo "make test-core  the tests of the mathematics alone, in seconds"
	@echo "make test-slow  the tests that train for minutes"
	@echo "make pages      run every command of the README and of docs/, made small"
	@echo "make gpu        on a machine with CUDA: checks, benchmark and profile in one page (8 minutes)"
	@echo "make mutants    which slip in a formula would the tests miss? (50 minutes on one core)"
	@echo "make install    only the virtual environment, in $(VENV)"
	@echo "make clean      remove the virtual environment and caches; runs in outputs/ stay"

demo: install
	@run=outputs/demo-$$(date +%Y-%m-%d_%H-%M-%S) && \
	$(BIN)/diffuse train name=$${run#outputs/} && \
	$(BIN)/diffuse sample ckpt=$$run n=64 sampler=ddim seed=1 name=demo && \
	$(BIN)/diffuse eval ckpt=$$run n=1000 metrics=[fid,precision_recall] features=classifier name=demo && \
	echo && \
	echo "digits drawn by the network just trained:  $$run/samples/demo/grid.png" && \
	echo "what it drew while it was learning:        $$run/images/" && \
	echo "how far they are from real ones:           $$run/eval/demo/eval.json" && \
	echo "curves:                                    $(BIN)/tensorboard --logdir $$run"

install: $(VENV)/installed
dev: $(VENV)/installed-dev

test: lint types tests

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: dev
	$(BIN)/mypy

tests: dev
	$(BIN)/python -m pytest -n $(WORKERS)

test-core: dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 tests/mathematics

pages: dev
	$(BIN)/python scripts/run_pages.py

test-slow: dev
	$(BIN)/python -m pytest -m slow -s

gpu: dev
	$(BIN)/python scripts/gpu.py

mutants: dev
	OMP_NUM_THREADS=1 $(BIN)/python scripts/mutants.py

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV): some minutes and 6 GB, nearly all of it PyTorch with its CUDA libraries"
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing for development into $(VENV): some minutes and 7 GB, nearly all of it PyTorch"
	$(BIN)/pip install --quiet --editable ".[dev]"
	@touch $@ $(VENV)/installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info[:2] <= (3, 13); \
	ok or sys.exit("diffuse needs Python 3.10 to 3.13, not %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist build
