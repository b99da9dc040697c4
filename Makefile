# make install   .venv with the package (editable) and all that its tests need
# make demo      enlarges photographs, trains a small network for a minute; results in demo/
# make test      the tests; those that need a CUDA GPU skip themselves without one
# make lint      style
# make dist      sdist and wheel in dist/
# make clean     removes what the others made, .venv included

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: install demo test lint dist clean

install: $(VENV)/installed

# Without build isolation the extension is compiled against the PyTorch that runs it, and torch is installed once.
$(VENV)/installed: setup.py pyproject.toml constraints.txt $(shell find csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch setuptools ninja
	$(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python examples/demo.py --out demo

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

dist: install
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis cmslap/*.so
	find . -name __pycache__ -prune -exec rm -rf {} +
