# make demo: trains a small model and draws its pictures.   make test: lints and tests.
# Both need only python3 >= 3.10 and a package index; everything is installed into .venv.
# pip's own variables are honoured, e.g. PIP_INDEX_URL, PIP_EXTRA_INDEX_URL.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PYTEST_ARGS ?=

.PHONY: help demo test clean

help:
	@echo 'make demo | make test [PYTEST_ARGS="-k name"] | make clean      (PYTHON=python3.12 picks an interpreter)'

demo: $(VENV)/.installed-demo
	$(RUN) examples/quickstart.py

test: $(VENV)/.installed-test
	$(RUN) -m ruff check .
	$(RUN) -m pytest $(PYTEST_ARGS)

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
	rm -rf $(VENV) build dist out *.egg-info .pytest_cache .ruff_cache .benchmarks .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
