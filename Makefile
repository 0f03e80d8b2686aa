# FedSLM: `make demo` to see it work, `make test` to check it. Each makes the virtual environment it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TORCH  := $(shell grep -i '^torch==' constraints.txt)

.PHONY: help demo test check cover bench clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed  ## five hospitals tune one model under differential privacy, compared with the alternatives
	$(BIN)/fedslm simulate compare=true

test: $(VENV)/.installed-dev  ## run the tests (unit and integration)
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2

check: $(VENV)/.installed-dev  ## lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

cover: $(VENV)/.installed-dev  ## every branch of the cryptography and the protocol is tested, or this fails
	$(BIN)/python -m pytest tests/crypto tests/secagg -m "not slow" -n 2 --cov=fedslm.crypto --cov=fedslm.secagg --cov-fail-under=100

bench: $(VENV)/.installed-dev  ## measure what docs/results.md states (takes about 45 minutes)
	$(BIN)/python -m simulations.benchmarks.run --out docs/results.md

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist

# torch goes first and pinned: left to the resolver, a newer build with gigabytes of GPU libraries can win.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("FedSLM needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	touch $@ $(VENV)/.installed
