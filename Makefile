# `make setup` builds .venv with everything; the other targets call it when something is missing.
# Nothing here needs more than Python >= 3.11, a C++ compiler and make; after the first `make setup`
# all but `wheel`, `ops-matrix`, `lock` and `audit` work without a network.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup demo test test-slow soak contract bench-serve lint bench docs docs-serve clean ops wheel ops-check \
	ops-matrix lock sbom audit licences

setup: $(STAMP)

# torch first and without build isolation, so that the ops compile against the torch that will run
# them and no second torch is downloaded.
$(STAMP): pyproject.toml constraints.txt setup.py $(shell find ops/csrc -type f 2>/dev/null)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch torchvision "setuptools>=77" wheel ninja
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[ray,geo,dev,docs]"
	@$(BIN)/python -c "import d2det_ops"  # pip hides what the build said: a warning if nothing is compiled
	touch $@

# Trains, scores, labels, serves and asks, on this machine; DATA=folder takes COCO-format data.
DATA ?=
OUT ?= demo_out
demo: setup
	$(BIN)/python jobs/demo.py --out "$(OUT)" $(if $(DATA),--data "$(DATA)")

test: setup
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -q -m slow

# Trainings and labellings whose workers, drivers and nodes are killed at random moments, held to
# undisturbed ones bit for bit: 30 and 60 kills, an hour or so.
KILLS ?= 30
ROUNDS ?= 20
soak: setup
	$(BIN)/python -m tests.platform.train.plain_kills --kills $(KILLS)
	$(BIN)/python -m tests.platform.train.plain_kills --kills $(KILLS) --object-store
	$(BIN)/python -m tests.platform.train.soak --kills $(KILLS)
	$(BIN)/python -m tests.platform.label.soak --rounds $(ROUNDS) --kills 3

# Some four thousand generated requests against the endpoint's description, every check.
contract: setup
	D2DET_CONTRACT_CASES=300 $(BIN)/python -m pytest -q tests/platform/serve/test_contract.py

# The endpoint under load, roll-outs and kills: a quarter of an hour.
bench-serve: setup
	for part in overhead batching overload rollout kills slow; do \
		$(BIN)/python benchmarks/serve.py $$part || exit 1; done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Every benchmark that needs no data of yours; tables here, JSON in benchmarks/results. An hour.
bench: setup
	for name in ops model merge memory evaluation; do $(BIN)/python benchmarks/$$name.py || exit 1; done

# The compiled ops again, in place: after an edit under ops/csrc.
ops: setup
	$(BIN)/python setup.py --quiet build_ext --inplace
	$(BIN)/python ops/check_abi.py ops/d2det_ops/_C*.so

# dist/d2det-*-abi3-*.whl for workers and images: any Python >= 3.11, any torch >= 2.11, and with
# nvcc at hand every GPU from sm_75 on. Takes minutes then; `make wheel FORCE_CUDA=0` is CPU only.
wheel: export FORCE_CUDA ?= 1
wheel: setup
	rm -rf build/lib* build/bdist*  # setuptools would pack what an earlier build left there
	$(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

# Compiles all, CUDA included, for ARCHES on a machine that needs no GPU, and looks at the result.
ARCHES ?= 7.5;9.0
ops-check: setup
	FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="$(ARCHES)" $(BIN)/python setup.py --quiet build_ext \
		--build-lib build/ops-check --build-temp build/ops-check/objects
	$(BIN)/python ops/check_abi.py build/ops-check/d2det_ops/_C*.so

# One wheel under the oldest torch, a CPU-only one and the newest: gigabytes of downloads.
ops-matrix: setup
	$(BIN)/python benchmarks/ops_versions.py

# The documentation below build/site, links checked; `make docs-serve` shows it while you write.
docs: setup
	$(BIN)/python docs/make_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

docs-serve: docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# Every version with its hashes, for images that take nothing else (pip install --require-hashes).
TOOLS := build/tools
lock: $(TOOLS)/.ready
	$(TOOLS)/bin/pip-compile --quiet --generate-hashes --extra ray --extra geo -c constraints.txt \
		--output-file build/requirements.lock pyproject.toml

# What is inside, as CycloneDX; and whether any of it is known to be vulnerable.
sbom: $(TOOLS)/.ready setup
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --of JSON \
		--output-file build/sbom.json $(BIN)/python

audit: $(TOOLS)/.ready setup
	$(BIN)/python -m pip freeze --exclude-editable > build/installed.txt
	$(TOOLS)/bin/pip-audit --requirement build/installed.txt --no-deps --disable-pip

$(TOOLS)/.ready:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet "cyclonedx-bom>=7" "pip-audit>=2.10" "pip-tools>=7.5"
	touch $@

# THIRD_PARTY_NOTICES.md again, from what is installed.
licences: setup
	$(BIN)/python docs/third_party.py

clean:
	rm -rf $(VENV) build dist *.egg-info ops/d2det_ops/*.so
