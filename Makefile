# Every target does all the set-up it needs. `make help` lists them.
SHELL := /bin/bash
# make VENV=.venv-3.13 PYTHON=python3.13 check: another environment beside it, with another Python.
VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,\
  $(shell $p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $p)))
# uv, where there is one that knows dependency groups (0.6.10 does, 0.6.0 does not); else it is installed into the environment.
UV := $(shell uv pip install --help 2>/dev/null | grep -q -e --group && command -v uv || echo $(BIN)/uv)
export PIP_USER := 0
unexport PIP_TARGET PIP_PREFIX
export PATH := $(CURDIR)/$(BIN):$(PATH)
# TORCH_BACKEND=cpu make setup: a build of torch without CUDA, where the download can be reached.
TORCH := $(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND))
STAMP := $(VENV)/.set-up
UNFINISHED := $(VENV)/.unfinished
SHOOT := $(or $(shell command -v chromium),$(shell command -v google-chrome),chromium) --headless --no-sandbox --hide-scrollbars --log-level=3

.DEFAULT_GOAL := help
.PHONY: help setup demo repro page test check format bench torture mend pictures lock

help: ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 18

setup: $(STAMP) ## everything the other targets need, in .venv

$(STAMP): pyproject.toml requirements.lock
	@{ test -f $(BIN)/activate && test ! -e $(UNFINISHED); } || rm -rf $(VENV) # made in part, by a set-up that was killed
	@test -d $(VENV) || { command -v uv >/dev/null && uv venv -q --python $(or $(PYTHON),'>=3.11') $(VENV); } || \
	  { test "$(PYTHON)" && $(PYTHON) -m venv --clear $(VENV); } || \
	  { echo "error: no Python 3.11 or later on PATH; install one, or name it: make PYTHON=/path/to/python3 setup" >&2; exit 2; }
	@touch $(UNFINISHED)
	@test -x $(UV) || { $(BIN)/python -m ensurepip >/dev/null 2>&1; $(BIN)/python -m pip install -q uv; }
	@echo "set-up: packages into $(VENV) (torch alone is several GB; once)"
	@$(UV) pip install -q --compile-bytecode --python $(BIN)/python $(TORCH) -r pyproject.toml --extra export --group pipeline --group test -c requirements.lock
	@$(UV) pip install -q --python $(BIN)/python --no-deps --editable .
	@rm $(UNFINISHED) && touch $@

demo: $(STAMP) ## digits from noise in seconds, then a flow trained from scratch on 6,000 real digits; offline
	@$(BIN)/python -m tools.demo

repro: $(STAMP) ## the MNIST run: dvc repro, after what it may have left unreadable when it was killed is gone
	@$(BIN)/python -m tools.mend --no-cache
	@$(BIN)/dvc repro

page: $(STAMP) ## digits in the browser: export of the last run or the bundled model, build, serve; PAGE="--port 8000"
	@$(BIN)/python -m tools.page $(PAGE)

test: check $(VENV)/.peers ## checks and tests
	@$(BIN)/python -m pytest $(TESTS)

$(VENV)/.peers: $(STAMP) tests/peers.txt
	@$(UV) pip install -q --no-deps --python $(BIN)/python -r tests/peers.txt
	@touch $@

check: $(STAMP) ## formatting, lint, types
	@$(BIN)/ruff format -q --check . && $(BIN)/ruff check -q . && $(BIN)/mypy

format: $(STAMP) ## put the code in order
	@$(BIN)/ruff format -q . && $(BIN)/ruff check -q --fix .

bench: $(STAMP) ## make repro, watched: seconds and peak memory of every stage that runs
	@$(BIN)/python -m benchmarks.end_to_end

torture: $(STAMP) ## 100 kills at random moments, each made good by dvc repro; TORTURE="--kills 10 --seed 1 --jobs 2"
	@$(BIN)/python -m tests.torture $(TORTURE)

mend: $(STAMP) ## remove what dvc was killed in the middle of writing, and corrupt files in its cache
	@$(BIN)/python -m tools.mend

pictures: ## copy the pictures of the last run to docs/, where the README shows them, and photograph its pages
	@mkdir -p docs/pictures && cp reports/pictures/*.png docs/pictures/
	@$(SHOOT) --window-size=1280,940 --screenshot=docs/pictures/report.png file://$(CURDIR)/reports/report.html
	@$(SHOOT) --window-size=1280,585 --screenshot=docs/pictures/sweep.png file://$(CURDIR)/sweeps/report.html

lock: ## resolve requirements.lock anew
	@$(UV) pip compile -q --universal --python-version 3.11 --no-annotate --no-header --no-emit-index-url \
	  --extra export --group pipeline --group test pyproject.toml -o requirements.lock
