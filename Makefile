# `make help` lists the targets. Everything is made in .venv, datasets and output, below this folder.

VERSIONS := 3.11 3.12 3.13
# The python3 of an active environment if it will do, else the first version that is installed.
CANDIDATES := $(if $(VIRTUAL_ENV)$(CONDA_PREFIX),python3) $(VERSIONS:%=python%)
FITS := import sys; sys.exit("%d.%d" % sys.version_info[:2] not in "$(VERSIONS)".split())
PYTHON ?= $(or $(shell for p in $(CANDIDATES); do \
	$$p -c '$(FITS)' >/dev/null 2>&1 && echo $$p && break; done),python3)

BIN := .venv/bin
READY := .venv/setup.json
DATA := $(or $(DETECTRON2_DATASETS),datasets)
MINI := $(DATA)/mini/metadata/classes_minilm.npy
MINI_WORDS := $(DATA)/mini/metadata/classes_minilm_words.npy
MINI_LVIS := $(DATA)/mini_lvis/summary.json

.DEFAULT_GOAL := help
.PHONY: help setup extras data data-lvis demo test test-all lint clean

help:  ## this list
	@echo "make TARGET [PYTHON=/path/to/python3.11]   (Python $(VERSIONS))"
	@sed -n 's/^\([a-z-]*\):.*##/  \1\t/p' Makefile | expand -t 14

setup: $(READY)  ## .venv with pinned packages; a Detectron2 that is already there is kept

$(READY): requirements.txt constraints.txt requirements-detectron2.txt pyproject.toml tools/set_up.py
	$(PYTHON) tools/set_up.py $(SETUP_OPTIONS)

extras:  ## also what export, web page, tracks and event writers need
	$(PYTHON) tools/set_up.py --extras $(SETUP_OPTIONS)

data: $(MINI) $(MINI_WORDS)  ## the mini benchmark and its class embeddings

$(MINI): | $(READY)
	$(BIN)/python tools/make_mini.py --output $(DATA)
	$(BIN)/python tools/build_text_embeddings.py classes --dataset mini --tower minilm --pretrained "" \
		--prompt a --output $@

$(MINI_WORDS): | $(MINI)
	$(BIN)/python tools/build_text_embeddings.py classes --dataset mini --tower minilm --pretrained "" \
		--features words --output $@

data-lvis: $(MINI) $(MINI_LVIS)  ## mini OV-LVIS; its class embeddings are the mini benchmark's

$(MINI_LVIS): | $(READY)
	$(BIN)/python tools/make_mini.py --output $(DATA) --benchmark lvis

demo: $(READY)  ## train Detic and Detic + CLIM on the mini benchmark and write output/demo/report.html
	$(BIN)/python tools/demo.py

test: $(READY)  ## all but the slow tests
	$(BIN)/python -m pytest -m "not slow"

test-all: $(READY)  ## all tests
	$(BIN)/python -m pytest

lint: $(READY)  ## ruff: rules and format
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check

clean:  ## remove .venv and caches; datasets and output stay
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis *.egg-info
	find projects tests tools datasets -name __pycache__ -prune -exec rm -rf {} +
