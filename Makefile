# make demo, make test and make setup each set up what they need, in .venv, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp-setup
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false
export NO_MKDOCS_2_WARNING := 1

.PHONY: setup demo demo-fast check test test-slow bench docs clean

setup: $(STAMP)

# Torch comes first and alone: where a CPU build lies ready, nothing after it asks for another.
$(STAMP): pyproject.toml constraints.txt zoo.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "melior needs Python 3.11 or newer; found %d.%d; name one: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r zoo.txt
	@touch $@

demo: setup
	$(BIN)/melior demo --out runs/demo --overwrite

demo-fast: setup
	$(BIN)/melior demo --fast --n-held-out 50 --epochs 1.2 --learning-rate 1e-4 --out runs/demo-fast --overwrite

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m slow

bench: setup
	$(BIN)/python benchmarks/all.py

docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site .mypy_cache .ruff_cache .hypothesis
