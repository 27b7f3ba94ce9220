# Everything a person or CI runs. Each target sets up what it needs; running it again reuses what is there.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo test test-slow test-s3 lint format services services-stop base docs bench-quick clean

help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

$(STAMP): pyproject.toml constraints/py311.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first and alone: an unpinned torch pulls in gigabytes of CUDA packages.
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints/py311.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints/py311.txt -e '.[dev]'
	@touch $@

setup: $(STAMP)  ## Make the virtual environment with the pinned dependencies.

demo: $(STAMP)  ## Run the main job end to end: base, fine-tune, evaluate, merge, promote, serve.
	@env -u OMP_NUM_THREADS $(BIN)/yard quickstart

test: $(STAMP)  ## Run the test suite (under 15 minutes on 2 cores).
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

test-slow: $(STAMP)  ## Run the tests that take longer.
	$(BIN)/python -m pytest -m slow

test-s3: $(STAMP)  ## Run the S3 tests against a real server (OpenStack Swift from PyPI, started for it).
	@trap 'bash scripts/swift.sh stop' EXIT; \
	variables=$$(bash scripts/swift.sh start) || exit 1; \
	env $$variables $(BIN)/python -m pytest -k "s3" \
	  tests/conformance/test_stores.py tests/store/test_s3.py tests/registry/test_s3_yard.py

lint: $(STAMP)  ## Ruff, mypy strict and the direction of imports.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

format: $(STAMP)  ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

services:  ## Install and start what the tests need (PostgreSQL).
	bash scripts/services.sh

services-stop:  ## Stop what `make services` started.
	bash scripts/services.sh stop

base: $(STAMP)  ## Retrain the shipped base model into build/base (about 45 minutes on one core).
	$(BIN)/python -m modelyard.quickstart.pretrain build/base

docs: $(STAMP)  ## Regenerate the command-line reference.
	$(BIN)/python scripts/reference.py

bench-quick: $(STAMP)  ## A small run of every benchmark.
	@for script in catalog convert estimate export load merge quantize store; do $(BIN)/python benchmarks/$$script.py --quick || exit 1; done

clean:  ## Remove the virtual environment and caches.
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .hypothesis
