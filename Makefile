# `make setup` builds .venv with everything; the other targets call it when something is missing.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup test test-slow lint bench clean

setup: $(STAMP)

# torch first and without build isolation, so that the ops compile against the torch that will run
# them and no second torch is downloaded.
$(STAMP): pyproject.toml constraints.txt setup.py $(shell find ops/csrc -type f 2>/dev/null)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch torchvision "setuptools>=77" wheel ninja
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[ray,geo,dev]"
	touch $@

test: setup
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -q -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info ops/d2det_ops/*.so
