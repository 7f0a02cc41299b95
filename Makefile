# Every target sets itself up: it makes .venv on first use and installs the tested versions into it.
#
#   make demo         watch the bundled world answer robot actions, on a CPU
#   make test         run the tests
#   make simulators   add the optional simulators (recording data, checking policies)
#   make datasets     add the readers of nuScenes, RLDS, HDF5 and Minari
#   make lint         ruff and mypy
#   make benchmark    measure the bundled world on recorded episodes (DATA=data/robot)
#
# PYTHON=python3.12 chooses the interpreter. torch is pinned to 2.13.0 in any build; to choose one for your
# GPU, install that build into .venv by the instructions on pytorch.org, then run make as usual.

PYTHON ?= python3
VENV ?= .venv
OUT ?= outputs/demo
DATA ?= data/robot
PIP = $(VENV)/bin/python -m pip
INSTALL = $(PIP) install --quiet -c constraints.txt

# Spinning OpenMP threads slow small models down many times over on a busy machine.
export GOMP_SPINCOUNT ?= 1000

.PHONY: demo test simulators datasets lint benchmark

demo: $(VENV)/.installed
	$(VENV)/bin/astra-env demo --out $(OUT)

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest -q

simulators: $(VENV)/.installed-simulators

datasets: $(VENV)/.installed-datasets

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

benchmark: $(VENV)/.installed-dev
	$(VENV)/bin/astra-bench first-light --data $(DATA) --readme README.md

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "astra-env needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
	         "choose another with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp records each finished installation; it is repeated when its inputs change.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing astra-env into $(VENV); the first time this takes a few minutes."
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e '.[dev,rl,benchmark,human,play,wan,training,manipulation]'
	@touch $@

# Simulators carry stale pins on other packages but run beside their current versions: what they really need
# comes first, in the tested versions; then they themselves, without their pins.
$(VENV)/.installed-simulators: $(VENV)/.installed requirements/simulators.txt
	$(INSTALL) -e '.[simulators]'
	$(PIP) install --quiet --no-deps -r requirements/simulators.txt
	@touch $@

$(VENV)/.installed-datasets: $(VENV)/.installed requirements/datasets.txt
	$(INSTALL) -e '.[datasets]'
	$(PIP) install --quiet --no-deps -r requirements/datasets.txt
	@touch $@
