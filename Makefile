# Two commands on a fresh machine with Python 3.11 and nothing else: `make quickstart`, `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# torch is pinned in constraints.txt; installing it first lets pip take a local wheel where there is one.
PIP    := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
# Two tests at a time: many of them wait, for a process to start or for a time-out to pass.
SIDE_BY_SIDE := -n 2 --dist worksteal

.PHONY: quickstart test test-long test-slow test-distributed test-federated check format docs bench clean help

help:
	@echo "make quickstart   install, train a small GPT on Python's own source, evaluate it, write its report (minutes)"
	@echo "make test         the tests, on the CPU alone (about 10 minutes on two cores)"
	@echo "make test-long    the rest of what CI runs: documented commands, plugins, kills, exported formats (about 7 minutes on two cores)"
	@echo "make test-slow    the recipes at full size, against the figures that they must reach"
	@echo "make test-distributed  every layout against one process, killed workers, other layouts on resume (about 14 minutes on two cores)"
	@echo "make test-federated  a coordinator and sites in network namespaces, through killed ones (as root, about 8 minutes on two cores)"
	@echo "make check        format, lint, types, layers, exports"
	@echo "make docs         build the documentation, warnings are errors"
	@echo "make bench        every speed claim, ours and the peer in one run"

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tauon needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.user: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.user
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) -e '.[bench]'
	@touch $@

quickstart: $(VENV)/.user
	$(BIN)/tauon run quickstart

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-long: $(VENV)/.dev
	$(BIN)/python -m pytest -m "long and not slow" $(SIDE_BY_SIDE)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow and not distributed" --timeout 3600

test-distributed: $(VENV)/.dev
	$(BIN)/python -m pytest -m distributed --timeout 900 --dist worksteal -n 3

test-federated: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow and distributed" tests/federated --timeout 1800

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py tests/test_exports.py

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) docs/_build .pytest_cache .ruff_cache .mypy_cache
