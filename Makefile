# make demo: trains a small model and draws its pictures.   make check: lints, types, quick tests.   make test: all tests.
# make docs: the site.   make notebooks: those of the site, run.   make package: what is published, built and tried.
# They need only python3 >= 3.10 and a package index; everything is installed into .venv, for make package elsewhere.
# pip's own variables are honoured, e.g. PIP_INDEX_URL, PIP_EXTRA_INDEX_URL.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PYTEST_ARGS ?=

# Tests run on one thread each, and some wait: as many processes as there are cores, four at most.
WORKERS := -n auto --maxprocesses 4 --dist worksteal

# What most changes break, in seconds: tests/test_*.py of these names.
QUICK := checkpoint config data digests errors evaluation kernels model networks package priors types

.PHONY: help demo check test docs notebooks package clean

help:
	@echo 'make demo       trains a small model and draws its pictures'
	@echo 'make check      lints, types and quick tests: before every commit'
	@echo 'make test       every test; PYTEST_ARGS="-k name" picks some, CHECKED=yes leaves out those of make check'
	@echo 'make docs       the site, from docs/ into site/; python3 -m http.server -d site shows it'
	@echo 'make notebooks  runs docs/notebooks/'
	@echo 'make package    builds sdist and wheel, and tries both in new environments'
	@echo 'make clean      removes what these write'
	@echo 'PYTHON=python3.12 picks an interpreter'

demo: $(VENV)/.installed-demo
	$(RUN) examples/quickstart.py

check: $(VENV)/.installed-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) tests/typecheck.py
	$(RUN) -m pytest $(WORKERS) -q $(QUICK:%=tests/test_%.py)

test: $(VENV)/.installed-test
	$(RUN) -m pytest $(WORKERS) $(if $(CHECKED),$(QUICK:%=--ignore=tests/test_%.py)) $(PYTEST_ARGS)

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

notebooks: $(VENV)/.installed-demo $(VENV)/.installed-docs
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -p no:cacheprovider -c /dev/null --rootdir=docs/notebooks --nbmake docs/notebooks

package:
	tests/package.sh $(PYTHON) $(filter-out types,$(QUICK))

# One stamp per extra: the environment is touched again only when its description changes.
$(VENV)/.installed-%: setup.py constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 || \
		{ echo "error: '$(PYTHON)' not found: install Python 3.10 or newer, or name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
		{ echo "error: fastaae needs Python 3.10 or newer, '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "error: '$(PYTHON)' cannot make virtual environments: install its venv package (Debian, Ubuntu: apt-get install python3-venv)"; exit 1; }
	@$(RUN) -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check 'pip>=22'
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) build dist out site *.egg-info .pytest_cache .ruff_cache .benchmarks .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
