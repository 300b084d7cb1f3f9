# make setup | train | check | test | test-volta | test-peers | gpu. Each is safe to repeat; what is there already is not made again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Files written with a time stamp when an installation is complete, so that a broken one is done again.
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev

# Thousands of processes import the same modules: without their bytecode, which containers often forbid, each compiles
# them anew. With it, installing need not compile what nobody imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup train check test test-volta test-peers gpu

setup: $(READY)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python's venv module is missing: apt-get install python3-venv" >&2; exit 2; }

$(READY): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(READY_DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(READY)

train: setup
	$(BIN)/python -m ima_dist.train moons

# What can be known within two minutes: no Ray, no SLURM, no browser. Types beside the tests, as mypy uses one core.
check: $(READY_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy & types=$$!; \
	$(BIN)/python -m pytest -n 2 tests/unit; tests=$$?; \
	wait $$types && exit $$tests

test: $(READY_DEV)
	@sh tests/support/system_packages.sh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
# Four files at a time on two cores: a Ray test often waits.
	$(BIN)/mypy & types=$$!; \
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder; tests=$$?; \
	wait $$types && exit $$tests

# The tests with the torch that V100 and Titan V need, in an environment of its own; without the jobs on a real SLURM.
test-volta: | $(BIN)/python
	@sh tests/support/system_packages.sh
	@test -x .venv-volta/bin/python || { echo "Installing into .venv-volta: torch and CUDA's libraries are a download of 3 GB"; $(PYTHON) -m venv .venv-volta; }
	.venv-volta/bin/python -m pip install --quiet --disable-pip-version-check -c constraints/volta.txt -e '.[dev]'
	.venv-volta/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder --ignore tests/system/test_slurm_live.py

# Our classifiers in other people's tools (docs/interoperability.md), in an environment of its own; not in CI.
test-peers: | $(BIN)/python
	@test -x .venv-peers/bin/python || { echo "Installing into .venv-peers: torch and CUDA's libraries are a download of 3 GB"; $(PYTHON) -m venv .venv-peers; }
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r constraints/peers.txt -e .
	@# adv-lib asks for visdom, which no longer installs, and which none of its attacks needs.
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps adv-lib==0.2.8
	.venv-peers/bin/python -m pytest tests/peers

# The check for a machine with a card (docs/gpu.md), with the packages that $(PYTHON) has: no .venv. It prints JSON lines.
gpu:
	@$(PYTHON) -m benchmarks.gpu $(ARGS)
