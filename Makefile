# segmill: a Python >= 3.11 and make are all this needs; everything is installed into .venv.
#
#   make demo                       the tour on generated street scenes
#   make demo DATA=path/to/CamVid   the same on CamVid in SegNet's layout
#   make test                       the test suite

# The first interpreter that is new enough; where none is, python3, which then says so.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; done; \
	echo python3)
DATA ?=
OUT ?= demo
ARGS ?=
BENCH ?= $(filter-out benchmarks/measure.py,$(wildcard benchmarks/*.py))

VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: help demo test lint format bench docs clean

help:
	@echo "make demo [DATA=DIR] [OUT=demo]   the tour: generate, ingest, train, label, evaluate, gallery"
	@echo "make test [ARGS=...]              the tests"
	@echo "make lint                         ruff and mypy"
	@echo "make format                       ruff, mending"
	@echo "make bench [BENCH=FILE ARGS=...]  the benchmarks"
	@echo "make docs                         the documentation, into site/"
	@echo "make clean                        remove .venv, caches and build outputs"
	@echo "PYTHON=python3.12 names another interpreter."

demo: $(VENV)/.installed
	@$(VENV)/bin/python -m jobs demo $(if $(DATA),--data "$(DATA)") --out "$(OUT)" $(ARGS)

test: $(VENV)/.installed-dev
	@$(VENV)/bin/python -m pytest -n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.installed-dev
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

format: $(VENV)/.installed-dev
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

bench: $(VENV)/.installed-dev
	@for bench in $(BENCH); do echo "== $$bench"; $(VENV)/bin/python $$bench $(ARGS) || exit 1; done

docs: $(VENV)/.installed-dev
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict
	@echo "site/index.html"

# A stamp for each kind of installation: done again only when pyproject.toml changes.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	@echo "Installing segmill into $(VENV); the first time this downloads some gigabytes (torch)."
	@$(PIP) install -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/pip
	@echo "Installing segmill and its development tools into $(VENV)."
	@$(PIP) install --quiet -e ".[dev]"
	@touch $(VENV)/.installed $@

$(VENV)/bin/pip:
	@command -v "$(PYTHON)" >/dev/null || { echo "make: no '$(PYTHON)' here: install Python 3.11 or newer, or name yours: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1), segmill needs 3.11 or newer; name another: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "make: '$(PYTHON)' has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find benchmarks connectors jobs pipeline tests -name __pycache__ -type d -prune -exec rm -rf {} +
