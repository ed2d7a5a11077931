# make demo: train on real digits and write a report. make test: the tests. Both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Tests and demo run one process per core at most; more threads than cores only slow them down.
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-all lint format help

help:
	@grep -E '^# |^[a-z-]+:' Makefile | sed 's/:.*//' | head -40

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Unfog needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[data]' --group dev
	touch $(READY)

demo: $(READY)
	rm -rf runs/demo
	$(BIN)/unfog train digits --out runs/demo
	@echo "The report is at $(CURDIR)/runs/demo/report.html"

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 -m ''

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
