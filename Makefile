# `make demo` runs the quickstart grid, `make test` the tests, `make docs` builds site/. All set themselves up.
PYTHON ?= python3.11
CORES  ?= 2
BIN    := .venv/bin

.PHONY: demo docs test test-slow lint lock clean

demo: .venv/.installed
	$(BIN)/snakemake --cores $(CORES)

test: .venv/.installed
	$(BIN)/pytest -n 2

test-slow: .venv/.installed
	$(BIN)/pytest -m slow

docs: .venv/.installed
	$(BIN)/mkdocs build --strict

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

.venv/.installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $@

# Resolve the newest versions again and pin them (needs uv). The +cpu of a local wheel is not a version of the index.
lock:
	uv pip compile pyproject.toml --extra dev --no-annotate --no-header --quiet \
	  --no-emit-package setuptools --upgrade \
	  | sed -E 's/\+cpu$$//' | grep -v -E '^(nvidia|cuda|triton)' > requirements.lock

clean:
	rm -rf .venv .snakemake site
