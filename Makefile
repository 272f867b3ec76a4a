# `make run` and `make test` are all the set-up there is: each makes its own environment in .venv first.
PYTHON ?= python3
VENV := .venv
VLLM := .venv-vllm
PARITY := .venv-parity
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: run test test-long check types format docs bench curves interchange parity clean

run: $(VENV)/.core  ## teach the embedded model by reinforcement learning (a few minutes)
	$(BIN)/covey train $(ARGS)

test: $(VENV)/.dev  ## the test suite but what stands under test-long
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long" $(ARGS)

test-long: $(VENV)/.dev  ## examples, every line and block of the docs, trackers, kills of whole runs, measured memory
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long $(ARGS)

check: $(VENV)/.dev types  ## format, lint, types, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not distributed"

types: $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev  ## write the generated pages and build the site, strictly, in site/
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

claims: $(VENV)/.core  ## check what the papers claim and write docs/claims.md (some minutes, one thread)
	$(BIN)/covey claims --out docs/claims.md

bench: $(VENV)/.dev  ## speed and memory as ratios against a plain implementation in the same run
	$(BIN)/python -m benchmarks.sampling
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.memory

curves: $(VENV)/.dev  ## learning curves of every recipe on compose, three seeds (half an hour); only those whose options changed
	$(BIN)/python -m benchmarks.curves $(ARGS)

interchange: $(VENV)/.dev $(VLLM)/.ready  ## folders of covey load in transformers, peft and vLLM, and say the same
	COVEY_VLLM_PYTHON=$(abspath $(VLLM)/bin/python) $(BIN)/python -m pytest tests/interchange -ra $(ARGS)

# What vLLM pulls for pictures and sound is built for another torch and would break its import; texts do not need it.
$(VLLM)/.ready: tests/interchange/vllm.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

parity: $(PARITY)/.ready  ## run TRL's, verl's and OpenRLHF's own functions beside the presets; write docs/parity.md and the tests' numbers
	$(PARITY)/bin/python -m benchmarks.parity $(ARGS)

# The peers' pins contradict each other; verl and OpenRLHF come without theirs.
$(PARITY)/.ready: benchmarks/parity/requirements.txt benchmarks/parity/peers.txt constraints.txt
	test -x $(PARITY)/bin/python || $(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . -r $<
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/parity/peers.txt
	touch $@

# torch first and pinned: a later requirement would otherwise pull a build with gigabytes of GPU libraries.
$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(PARITY) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
