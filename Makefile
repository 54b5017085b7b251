# kpflow: everything a newcomer needs. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs-installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench docs clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "kpflow needs Python 3.10 or newer: make PYTHON=python3.x ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing kpflow and its tools into $(VENV) (a few minutes the first time)"
	@grep -E '^torch==' constraints.txt | xargs $(PIP)
	@$(PIP) -e ".[dev]"
	@touch $(STAMP)

$(DOCS_STAMP): $(STAMP)
	@$(PIP) -e ".[docs]"
	@touch $(DOCS_STAMP)

setup: $(STAMP)  ## make the environment in .venv

demo: $(STAMP)  ## train a GRU on MemoryPro, analyse it, write runs/demo/report.html
	@$(BIN)/kpflow demo --folder runs/demo

lint: $(STAMP)  ## style (ruff), types (pyright), import contract (import-linter)
	$(BIN)/ruff check src tests benchmarks examples docs
	$(BIN)/ruff format --check src tests benchmarks examples docs
	$(BIN)/pyright
	$(BIN)/lint-imports

test: lint  ## lint, then all tests, doctests and README examples
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -p no:benchmark

bench: $(STAMP)  ## time products against the named baseline; JSON into benchmarks/results
	$(BIN)/python -m benchmarks

docs: $(DOCS_STAMP)  ## the documentation, into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:  ## remove what the other targets made, the environment and runs included
	rm -rf $(VENV) runs build docs/_build docs/generated docs/examples .pytest_cache .ruff_cache .hypothesis src/*.egg-info
