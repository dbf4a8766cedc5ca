# Every command a person or a pipeline needs. `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --constraint constraints.txt

export ORT_DISABLE_TELEMETRY := 1
unexport PYTHONDONTWRITEBYTECODE  # tests and the demo start a hundred processes, which need not compile guard each

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all peers test-peers check format proto bench bench-serving clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(VENV)/.developer  ## Make .venv with everything a CPU-only machine needs

demo: $(VENV)/.developer  ## Calibrate a backdoored CIFAR-10 model, serve it guarded, attack it, heal it, swap it in, show the result
	$(BIN)/python -m benchmarks.demo

test: $(VENV)/.developer  ## Run the tests (about four minutes on two cores)
	$(BIN)/python -m pytest --numprocesses auto

test-all: $(VENV)/.developer  ## Run the slow tests and those against Ray and other projects' servers and clients too
	$(BIN)/python -m pytest --numprocesses auto --dist loadgroup -m "not gpu"

peers:  ## Install other projects' servers and clients, each in an environment of its own (build/peers)
	$(PYTHON) -m peers

test-peers: $(VENV)/.developer peers  ## Run the tests against them (about a minute)
	$(BIN)/python -m pytest --numprocesses auto --dist loadscope -m peer

check: $(VENV)/.developer  ## Format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.developer  ## Format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(VENV)/.developer  ## Make the gRPC stubs from proto/
	$(BIN)/python proto/generate.py

bench: $(VENV)/.developer  ## Measure the serving path; writes benchmarks/results
	$(BIN)/python -m benchmarks.bench_check
	$(BIN)/python -m benchmarks.bench_calls

bench-serving: $(VENV)/.developer peers  ## Measure Triton alone, through the guard and through Envoy (ten minutes)
	$(BIN)/python -m benchmarks.bench_serving

clean:  ## Remove what was built
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

# What serving and `guard calibrate` need: small, and no torch.
$(VENV)/.serving: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) --editable '.[cpu,calibrate]'
	@touch $@

# torch by itself first: the pinned release takes a CPU build where one is at hand.
$(VENV)/.developer: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[cpu,repair,dev]'
	@touch $(VENV)/.serving $@
