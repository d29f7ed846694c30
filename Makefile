# Two commands do all the set-up:  make demo  (the main job on a phantom with exact truth)  and  make test.
# Needed: Python 3.11 or newer with its venv module, make; for the browser test also apt and root (or Chromium).

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first interpreter that is new enough; `make PYTHON=/path/to/python3.12 …` overrides it.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=

.PHONY: help env env-test chromium postgres demo test test-all chaos bench lint format lock dist clean distclean

help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

# ---- environments: a stamp inside makes the second call instant; changed requirements make it install again

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then echo "no Python 3.11 or newer found: install one, or say make PYTHON=/path/to/python3"; exit 1; fi
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) has no working venv module: on Debian and Ubuntu install it with: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --upgrade pip  # the one that comes along may be years old and slow

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing cloudseg and what it needs into $(VENV): some minutes, once"
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[all]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing cloudseg and what its tests need into $(VENV): some minutes, once"
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[all,docs,test]'
	@touch $@ $(VENV)/.installed

env: $(VENV)/.installed ## make .venv with all that running needs
env-test: $(VENV)/.installed-test ## make .venv with all that testing needs

# Without apt or root the script says what is missing. The other tests run all the same, and the browser's fail: what
# nobody looked at is not shown to work. `make test NO_BROWSER=1` leaves them out on purpose.
NO_BROWSER ?=
BROWSER := $(if $(NO_BROWSER),and not browser,)

chromium:
	@$(if $(NO_BROWSER),:,bash tests/browser/install-chromium.sh || true)

# A database server for the tests of the soma catalogue; they start it themselves.
postgres:
	@bash tests/somas/install-postgres.sh || true

# ---- the main job

demo: env ## segment a phantom with exact truth, print the accuracy and a link
	$(BIN)/cloudseg demo $(DEMO_ARGS)

# ---- checks

lint: env-test ## ruff, mypy, import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: env-test ## let ruff format and fix what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: env-test chromium postgres lint ## what must pass before a merge (.ci/run calls it)
	$(BIN)/python -m pytest -m "not slow and not bench $(BROWSER)" $(PYTEST_ARGS)

test-all: env-test chromium postgres lint ## all tests, with random search by hypothesis
	HYPOTHESIS_PROFILE=search $(BIN)/python -m pytest $(PYTEST_ARGS)

# `make chaos CHAOS_SEED=7` repeats the faults of a run that failed; it has printed its seed.
CHAOS_SEED ?= $(shell echo $$RANDOM)

chaos: env-test ## the tests that kill, cut and fill, the long ones too, with fresh random seeds
	CHAOS_SEED=$(CHAOS_SEED) HYPOTHESIS_PROFILE=search $(BIN)/python -m pytest -m faults $(PYTEST_ARGS)

bench: env-test ## run each benchmark; each prints a table
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" $(BENCH_ARGS); done

# ---- documentation

docs: env-test ## build the documentation site into build/docs; a warning, such as a broken link, is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html -d build/docs-trees docs build/docs
	@echo "open build/docs/index.html"

# ---- upkeep

lock: ## write constraints.txt anew from a clean environment
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --upgrade pip
	build/lock/bin/python -m pip install --quiet --editable '.[all,docs,test]'
	@{ sed -n '/^#/p' constraints.txt; \
	   build/lock/bin/python -m pip freeze --exclude-editable | sed -E 's/\+[A-Za-z0-9.]+$$//'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt && rm -rf build/lock

dist: env-test ## build the wheel and the source archive into dist/
	$(BIN)/python -m hatchling build

distclean: clean ## the same, and the environment
	rm -rf $(VENV)

clean: ## remove what the other commands made; the environment stays
	rm -rf build dist docs/made demo-data test-artifacts .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find cloudseg tasks viewer tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
