# From a fresh clone: `make demo` to hear it, `make test` to check it. Each sets up what it needs, once.
# Needs Python 3.11 or newer and its venv module; everything else comes from the package index.

PYTHON ?= python3
PROMPT ?= examples/prompt-female.flac
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' Makefile

setup: .venv/dev.stamp  ## an environment in .venv with everything that development needs

demo: .venv/demo.stamp  ## continue the voice of examples/ into out.wav, and draw it as out.png
	$(BIN)/audiolm continue $(PROMPT) -o out.wav --plot out.png

# One thread for each of the processes: torch's own threads would fight over the cores.
test: export OMP_NUM_THREADS = 1
test: .venv/dev.stamp  ## all tests but the slow ones
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 $(ARGS)

lint: .venv/dev.stamp  ## style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/dev.stamp  ## the type checker
	$(BIN)/pyright

clean:  ## remove the environment, caches and what the demo made
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist out.wav out.png

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/demo.stamp: pyproject.toml | .venv/bin/python
	$(PIP) --editable '.[plot]'
	touch $@

# The development environment holds the demo's too.
.venv/dev.stamp: pyproject.toml | .venv/bin/python
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps resemblyzer  # its weights alone: docs/dependencies.md
	touch .venv/demo.stamp $@
