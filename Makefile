# Every target makes .venv and installs what it needs when that is missing or pyproject.toml has changed.
#
#   make demo        train, evaluate and draw small models in 2-D and 3-D
#   make test        the tests that take minutes at most
#   make coverage    the same, with the lines that they do not reach
#   make test-slow   the tests that train
#   make check       lint, format, types
#   make docs        the pages that are made from the code
#
# PYTHON=python3.12 picks another interpreter for .venv. CONSTRAINTS= (empty) installs the newest versions that
# pyproject.toml allows instead of the tested ones; CONSTRAINTS=constraints/oldest.txt EXTRAS=dev the oldest, which
# leaves out the comparisons with transformers and segmentation-models-pytorch.

PYTHON ?= python3
CONSTRAINTS ?= constraints/tested.txt
EXTRAS ?= dev,oracles
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

# Tests use tiny tensors, on which more threads only wait for each other.
TEST := OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest

PARALLEL := -n auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test coverage test-slow check docs clean

help:
	@sed -n '3,8s/^# *//p' Makefile

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/core.stamp: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

.venv/dev.stamp: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(INSTALL) -e '.[$(EXTRAS)]'
	@touch $@ .venv/core.stamp

demo: .venv/core.stamp
	$(BIN)/python -m pixvox.demo

test: .venv/dev.stamp
	$(TEST) -q -m "not slow" $(PARALLEL)

coverage: .venv/dev.stamp
	$(TEST) -q -m "not slow" $(PARALLEL) --cov --cov-report=term

test-slow: .venv/dev.stamp
	$(TEST) -q -m slow

check: .venv/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/core.stamp
	$(BIN)/python docs/make_reference.py

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .coverage
