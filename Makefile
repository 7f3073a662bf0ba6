# `make bench` prints the quick table, `make test` runs lint, types and tests, `make docs` writes the site.
# They make .venv and install into it first; that is skipped while pyproject.toml is unchanged.

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
STAMP = $(VENV)/.installed

.PHONY: bench test lint types tests slow format microbench docs install clean

bench: $(STAMP)
	@$(RUN) -m benchmarks run

test: lint types tests

lint: $(STAMP)
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

types: $(STAMP)
	@$(RUN) -m basedpyright --pythonpath $(RUN)

tests: $(STAMP)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: $(STAMP)
	@$(RUN) -m pytest -m slow

format: $(STAMP)
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

microbench: $(STAMP)
	@$(RUN) -m pytest -o addopts="--import-mode=importlib --strict-markers" --benchmark-only $(BENCH)

docs: $(STAMP)
	@$(RUN) -m mkdocs build --strict --quiet
	@echo "site/index.html (its search wants a server: $(PYTHON) -m http.server -d site)"

install: $(STAMP)

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is missing; install Python 3.11 or newer (apt-get install python3 python3-venv)" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: expected Python 3.11 or newer, got $$($(PYTHON) --version); set PYTHON=python3.12, say" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: the venv module is missing; apt-get install python3-venv" >&2; exit 2; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev]' >&2
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache site
