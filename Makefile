# Works from any folder (make -C, make -f), in a path with spaces, as root or not,
# with nothing but python3, make and git on the machine.
SHELL := /bin/sh
ROOT := $(shell cd "$$(dirname "$$(echo "$(MAKEFILE_LIST)" | sed 's/^ *//')")" && pwd -P)

ifneq ($(shell pwd -P),$(ROOT))

.PHONY: elsewhere $(or $(MAKECMDGOALS),help)
$(or $(MAKECMDGOALS),help): elsewhere
	@:
elsewhere:
	@$(MAKE) --no-print-directory -C "$(ROOT)" $(MAKECMDGOALS)

else

.DEFAULT_GOAL := help
.NOTPARALLEL:
PYTHON ?=
export PYTHON
PY := scripts/python.sh
ARGS ?=
# most tests wait for processes, so that four at a time are three times as fast on two processors
WORKERS ?= 4

.PHONY: help install install-llm demo test test-fast check lint fmt types layers schemas schemas-check bench docs docs-check lock clean

help: ## what can be made
	@echo "dagrun: make TARGET (ARGS='…' goes to pytest or to the benchmark)"
	@sed -n 's/^\([a-z][a-z-]*\):[^#]*## \(.*\)$$/  \1|\2/p' Makefile | while IFS='|' read -r name text; do \
	    printf '%-16s %s\n' "$$name" "$$text" | sed 's/^/  /'; done

install: ## dagrun and its tools into .venv (instant the second time)
	@sh scripts/install.sh

demo: install ## agents mend a small project: one fails, the plan is changed (10 s, no key)
	@sh scripts/demo.sh

install-llm: install ## litellm too, which only live agents and the tests need
	@sh scripts/install-llm.sh

test: install-llm ## all tests (ARGS='-k journal' for some)
	@$(PY) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-fast: install-llm ## all tests but the slow ones
	@$(PY) -m pytest -m 'not slow' $(ARGS)

check: lint types layers schemas-check docs-check test ## all that CI checks

lint: install ## style, with ruff
	@$(PY) -m ruff check .

fmt: install ## fix what can be fixed, and sort imports
	@$(PY) -m ruff check --fix-only -q .
	@$(PY) -m ruff check .

types: install ## types, with mypy --strict
	@$(PY) -m mypy

layers: install ## who may import whom
	@$(PY) -c 'from importlinter.cli import lint_imports_command; lint_imports_command(["--no-logo"])'

schemas: install ## write schemas/ from the models
	@$(PY) -m dagrun.flowfile.schema

schemas-check: install ## schemas/ is what the models say
	@$(PY) -m dagrun.flowfile.schema --check || { echo "  help: make schemas" >&2; exit 1; }

bench: install ## dagrun beside make and doit on one graph (ARGS='--shape chain --n 1,300')
	@PATH="$(ROOT)/.venv/bin:$(ROOT)/.deps/bin:$$PATH" $(PY) bench/run.py --peers make,doit-threads,floor-logs,dagrun $(ARGS)

docs: install ## run the commands shown in README and docs/, and write what they print
	@$(PY) scripts/docs.py

docs-check: install ## what README and docs/ show is what happens; no dead links
	@$(PY) scripts/docs.py --check

lock: ## renew the locks from pyproject.toml
	@sh scripts/lock.sh

clean: ## remove all that make has made
	@rm -rf .venv .deps build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .grimp_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

endif
