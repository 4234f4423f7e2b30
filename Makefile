# Two commands do everything on a fresh machine: `make audit` and `make test`.
# PYTHON names the interpreter; without it the first of these that is 3.11 or newer is taken.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
# Not compiled ahead: most files of torch and transformers are never imported, and the others compile once.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

# Where Python is told to keep no bytecode, every process would compile torch and transformers anew, 5 s each, and the
# tests start hundreds. So it is kept then, too, but in the environment's own folder alone.
ifneq ($(PYTHONDONTWRITEBYTECODE),)
export PYTHONDONTWRITEBYTECODE =
export PYTHONPYCACHEPREFIX = $(abspath $(VENV))/bytecode
endif

.PHONY: help setup audit test check bench docs clean
help:
	@echo "make audit   set up, audit the built-in model, print where the report is"
	@echo "make test    set up, run the tests"
	@echo "make check   lint, types, import rules"
	@echo "make docs    make the pages of the documentation that are made from the code"
	@echo "make bench   the speed and memory figures of the documentation (minutes)"

setup: $(VENV)/.installed-dev

audit: $(VENV)/.installed
	$(BIN)/fathom audit

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/run.py

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "fathom needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The stamps make a second call instant. torch is named first and alone: the constraint then chooses the tested build
# before any other package's requirement is looked at.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "setting up $(VENV) (once; a few minutes)"
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	@touch $@

docs: $(VENV)/.installed
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
