# make demo   install, and run the main job on the embedded default
# make test   install, and run lint, types and tests; as root on Debian or Ubuntu also against a real SLURM
# make faults strike runs on a real SLURM with every fault, and count rows lost; as root on Debian, an hour
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
# Tests of one SLURM cluster stay in one process, and wait much; so there may be more than cores.
TEST_WORKERS ?= 3
BIN := $(VENV)/bin

.PHONY: demo test lint system faults clean

demo: $(VENV)/.demo
	$(BIN)/chatspace demo

test: $(VENV)/.dev lint system
	$(BIN)/python -m pytest -n $(TEST_WORKERS)

faults: $(VENV)/.dev system
	$(BIN)/python benchmarks/faults.py $(FAULTS)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# SLURM and the container runtime: installed where that is possible; without them CI fails, a laptop skips.
system:
	hpc/install-test-system

$(VENV)/.demo $(VENV)/.dev: $(VENV)/.%: pyproject.toml constraints.txt hpc/make-venv
	PYTHON=$(PYTHON) hpc/make-venv $(VENV) $*
	touch $@

clean:
	rm -rf $(VENV) workspace build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
