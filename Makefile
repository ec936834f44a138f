# make demo: set up and run the main job. make test: set up and run the whole default suite.
# Uses uv where it is installed, else venv and pip. A second call installs nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
SWEEP ?= +sweep=lora_rank

# pip reads PIP_FIND_LINKS by itself; uv has to be told. A CPU build of torch found there goes
# before the registry's CUDA build, because its version 2.13.0+cpu sorts higher.
ifneq ($(UV),)
  MAKE_VENV = $(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
  INSTALL = $(UV) pip install --quiet --python $(BIN)/python $(addprefix --find-links ,$(PIP_FIND_LINKS))
else
  MAKE_VENV = $(PYTHON) -m venv $(VENV)
  INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

.PHONY: demo test check format clean

demo: $(VENV)/.run
	$(BIN)/ftsuite fetch
	$(BIN)/python -m ftsuite $(SWEEP)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(TESTS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	$(MAKE_VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable . --constraint constraints.txt
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable '.[dev]' --constraint constraints.txt
	@touch $@ $(VENV)/.run
