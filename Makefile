# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Both set up .venv by themselves, from the versions pinned in constraints.txt.

PYTHON ?= python3
BIN := .venv/bin

SEEDS ?= 200
FIRST ?= 1
JOURNAL ?= sqlite

.PHONY: help demo test crash-proof screenshots lint format lock clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; name one with: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e '.[demo]'
	@touch $@

.venv/.dev: .venv/.ready
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: .venv/.ready  ## run the main job end to end on embedded defaults
	@$(BIN)/reconciler demo

test: .venv/.dev lint  ## run every check that CI runs
	$(BIN)/pytest -n 2 --dist worksteal

crash-proof: .venv/.dev  ## play SEEDS=200 seeds of crashes and faults, from FIRST=1, on JOURNAL=sqlite or postgres
	$(BIN)/python -m proof --seeds $(SEEDS) --first $(FIRST) --journal $(JOURNAL)

screenshots: .venv/.dev  ## make the pictures of the operators' pages in docs/screens (needs chromium, chromedriver)
	$(BIN)/python -m bench.screenshots

lint: .venv/.dev  ## format, style, types and import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: .venv/.dev  ## mend what the formatter and linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: .venv/.ready  ## write constraints.txt anew from the newest versions that pyproject.toml admits
	rm -rf .venv/lock && $(PYTHON) -m venv .venv/lock
	.venv/lock/bin/pip install --quiet --disable-pip-version-check setuptools -e '.[dev]'
	{ echo "# Written by make lock."; .venv/lock/bin/pip freeze --all --exclude-editable --exclude pip; } > constraints.txt
	rm -rf .venv/lock

clean:  ## remove what the commands made
	rm -rf .venv .reconciler-demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
