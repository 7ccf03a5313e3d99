# Sets up .venv and runs each daily command; every target works alone on a machine with Python 3.11 or newer.

VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
DOCS    := $(VENV)/.installed-docs
WORKERS ?= 2
STORE   ?= runs
RUN     ?= poly1
TORCH   := torch==2.13.0
# First Python of at least 3.11 on the path; override with PYTHON=/path/to/python.
PYTHON  ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP     := $(BIN)/python -m pip --disable-pip-version-check
# One thread per process: the suites start $(WORKERS) processes, and the models are tiny.
ONE     := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint format docs screenshots setup-browser bench clean

help:  ## list the targets
	@echo "make TARGET, where TARGET is:"
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  \1\t/' | expand -t 18
	@echo
	@echo "The first target that needs it creates $(VENV) (see 'make setup')."
	@echo "  TORCH_INDEX=URL   package index for torch, such as PyTorch's own index of CPU wheels"
	@echo "  PYTHON=PATH       Python to build $(VENV) with (found: $(or $(PYTHON),none of at least 3.11))"

setup: $(STAMP)  ## create .venv and install the project, torch first

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python of at least 3.11 found; install one, or give PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "error: $(PYTHON) -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(STAMP): pyproject.toml | $(BIN)/python
	@echo "Setting up $(VENV); this downloads, once:"
	@echo "  - $(TORCH): about 200 MB as a CPU build"
	@echo "  - everything else (transformer-lens, nnsight, streamlit, test tools; triton on Linux): about 500 MB"
	@echo "  and takes about 3 GB on disk."
ifeq ($(TORCH_INDEX),)
	@echo "  TORCH_INDEX is not set: torch comes from the default index. On Linux that may be a CUDA build of several GB;"
	@echo "  to get a CPU build, stop (Ctrl-C) and give the address of PyTorch's own index of CPU wheels:"
	@echo "  make TORCH_INDEX=URL $(MAKECMDGOALS)"
	$(PIP) install --progress-bar off "$(TORCH)"
else
	@echo "  torch comes from TORCH_INDEX=$(TORCH_INDEX)"
	$(PIP) install --progress-bar off --index-url "$(TORCH_INDEX)" "$(TORCH)"
endif
	$(PIP) install --progress-bar off -q "$(TORCH)" -e ".[dev]"
	@touch $(STAMP)

demo: $(STAMP)  ## train a small model, find its iteration heads and write the report
	$(BIN)/interp demo

test: $(STAMP)  ## default test suite (about 7 minutes on 2 cores)
	$(ONE) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -q

test-slow: $(STAMP)  ## the tests marked slow, with full counts
	$(ONE) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -q -m "slow and not gpu"

lint: $(STAMP)  ## ruff check and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## rewrite the files as ruff formats them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(DOCS): $(STAMP)
	@echo "Installing Sphinx, MyST and Furo (about 20 MB)"
	$(PIP) install --progress-bar off -q "$(TORCH)" -e ".[dev,docs]"
	@touch $(DOCS)

docs: $(DOCS)  ## build the documentation into docs/_build/html
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

screenshots: $(STAMP)  ## take the pictures in docs/images again, from STORE and RUN; docs/screenshots.py names what they need
	$(ONE) $(BIN)/python -m docs.screenshots "$(STORE)" --run "$(RUN)"

setup-browser:  ## install Chromium for the browser tests, if there is none
	@.ci/browser

bench: $(STAMP)  ## the patching benchmark in its quick form; docs/measured.md names the command of every figure
	$(ONE) $(BIN)/python -m benchmarks.patching --quick

clean:  ## remove .venv and everything built
	rm -rf $(VENV) build dist *.egg-info docs/_build .pytest_cache .ruff_cache .hypothesis
