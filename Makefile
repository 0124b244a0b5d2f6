# Two commands for a new reader: `make up` talks to a real vLLM, `make test` runs everything.
# Needs Python 3.11 or newer and make; everything goes into .venv and .venv-vllm.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
PACKAGES := $(wildcard plugins/*/pyproject.toml)
EDITABLE := -e . $(foreach package,$(PACKAGES),-e $(dir $(package)))
PIP := .venv/bin/python -m pip --disable-pip-version-check --quiet
ARGS ?=

.PHONY: help up env dev engine test unit faults e2e lint bench bench-short bench-tools test-tools docs settings-page \
  cli-page public-api examples requirements dist clean

help:  ## show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | sort | expand -t 16

up: env engine  ## serve the model that comes with vllmrt on 127.0.0.1:8000 (VLLM_PORT), with a real vLLM
	@exec env VLLMRT_VLLM="$$(scripts/engine find)" .venv/bin/vllmrt up $(ARGS)

env: .venv/.runtime  ## vllmrt and its plugins, in .venv

engine: .venv/.runtime  ## a vLLM, in .venv-vllm, unless one is found
	@scripts/engine install

dev: .venv/.dev  ## what the tests and the linters need besides

.venv/.python:
	@echo "environment: .venv"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.runtime: .venv/.python pyproject.toml $(PACKAGES) requirements/runtime.txt
	@echo "environment: vllmrt and its plugins"
	@$(PIP) install --constraint requirements/runtime.txt $(EDITABLE)
	@touch $@

.venv/.dev: .venv/.runtime requirements/dev.txt
	@echo "environment: tools for tests"
	@$(PIP) install --requirement requirements/dev.txt
	@touch $@

test: lint unit e2e  ## everything: lint, types, unit and contract tests, end to end with a real vLLM

lint: dev  ## ruff and mypy --strict
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy src
	@for source in plugins/*/src examples/plugins/*; do .venv/bin/mypy "$$source"; done

unit: dev engine test-tools  ## the tests that start no vLLM server
	@VLLMRT_VLLM="$$(scripts/engine find)" .venv/bin/pytest -m "not e2e" -n 2

faults: dev  ## every fault of network, disk and process, and a hundred kills (FAULT_KILLS, FAULT_SEED)
	@FAULT_KILLS="$${FAULT_KILLS:-50}" .venv/bin/pytest tests/faults -n 2

e2e: dev engine test-tools  ## the tests that start a real vLLM, one at a time
	@VLLMRT_TEST_ENGINE="$$(scripts/engine find)" .venv/bin/pytest -m e2e

test-tools: .venv/.python
	@scripts/test-tools

BENCH := VLLMRT_TEST_ENGINE="$$(scripts/engine find)" PYTHONPATH=tests .venv/bin/python -m bench

bench: dev engine bench-tools  ## how fast it is, beside its rivals (some minutes): docs/benchmarks.md
	@$(BENCH) --write docs/benchmarks.md $(ARGS)

bench-short: dev engine bench-tools  ## the same with small models and one run each, to see that it works
	@$(BENCH) --short $(ARGS)

bench-tools: requirements/bench.txt
	@scripts/bench-tools

docs: dev  ## the pages as a site, in site/
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

settings-page: env  ## write docs/reference/settings.md anew
	@.venv/bin/python scripts/settings_page.py > docs/reference/settings.md

public-api: dev  ## write tests/public_api.txt anew: what is promised to plugins
	@.venv/bin/python scripts/public_api.py > tests/public_api.txt

cli-page: env  ## write docs/reference/cli.md anew
	@.venv/bin/python scripts/cli_page.py > docs/reference/cli.md

examples: dev  ## write what vllmrt render prints into examples/ anew
	@scripts/render-examples

COMPILE := .venv/bin/uv pip compile --quiet --universal --no-header --no-emit-index-url --python-version 3.11 \
  --no-emit-package vllmrt

requirements: dev  ## compile the versions in requirements/ anew
	@$(COMPILE) --upgrade --group dev --output-file requirements/dev.txt pyproject.toml $(PACKAGES)
	@$(COMPILE) --constraint requirements/dev.txt --output-file requirements/runtime.txt pyproject.toml $(PACKAGES)

dist: dev  ## wheels and source archives of all packages, in dist/, with the build tools of requirements/
	@rm -rf dist
	@.venv/bin/uv build --quiet --all-packages --no-build-isolation --python .venv/bin/python --out-dir dist
	@rm -f dist/.gitignore && ls dist

clean:  ## remove the environments and everything that was built
	rm -rf .venv .venv-vllm .venv-bench .venv-tools .venv-olah dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis
