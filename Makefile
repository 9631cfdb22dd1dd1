# podhook: two commands for newcomers (make demo, make test), a few more for developers (make help).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Workers of the test run; more than the cores helps, since brokers and processes are waited for.
TEST_WORKERS ?= 4
PYTEST_ARGS ?=
# The fault harness: how long, and the plan's seed (empty: a random one, printed).
FAULTS_SECONDS ?= 600
FAULTS_SEED ?=

# $(call needs,command,debian-package,what-for): install it where we may, otherwise say what to install.
define needs
if ! PATH="$$PATH:/usr/sbin:/sbin" command -v $(1) >/dev/null; then \
  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
    echo "installing $(2): $(3)"; \
    { apt-get install -y -qq --no-install-recommends $(2) || \
      { apt-get update -qq && apt-get install -y -qq --no-install-recommends $(2); }; } >/dev/null; \
  else \
    echo "$(1) is missing ($(3)): what needs it is skipped. Install it: sudo apt-get install $(2)"; \
  fi; \
fi
endef

.PHONY: help demo test test-pods test-faults pods-ready lint format bench constraints clean

help: ## Show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: $(VENV)/demo.stamp ## See it work: a broker, five agents, a file of hooks; needs nothing but Python
	@$(BIN)/podhook demo

test: $(VENV)/dev.stamp pods-ready ## Run every test; skips what cannot run here and says why
	@$(call needs,mosquitto,mosquitto,the broker of the tests)
	@$(call needs,openssl,openssl,certificates for the tests of TLS)
	@$(call needs,ip,iproute2,a network of the tests' own)
	@PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m pytest -n $(TEST_WORKERS) $(PYTEST_ARGS)

test-pods: $(VENV)/dev.stamp pods-ready ## Run the tests with real containers only; needs root and podman, which it installs
	@$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS) tests/pods

test-faults: $(VENV)/dev.stamp ## Kill, freeze, cut and fill for ten minutes, and see what held (FAULTS_SECONDS=600 FAULTS_SEED=)
	@$(call needs,mosquitto,mosquitto,the broker of the tests)
	@PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m tests.faults --seconds $(FAULTS_SECONDS) $(if $(FAULTS_SEED),--seed $(FAULTS_SEED))

# What the tests with real containers need: podman, and images that are made once and kept (three minutes, then a second).
# PODHOOK_TEST_BASE_IMAGE=python:3.13-slim takes that image for a base instead of making one with debootstrap.
pods-ready: $(VENV)/dev.stamp
	@missing="$$($(BIN)/python -m tests.pods.podman)"; if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing what plays pods: $$missing"; \
	    { apt-get install -y -qq --no-install-recommends $$missing || \
	      { apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; }; } >/dev/null; \
	  else \
	    echo "tests with real containers are skipped; they need root, and: sudo apt-get install $$missing"; \
	  fi; \
	fi
	@$(BIN)/python -m tests.pods.images

lint: $(VENV)/dev.stamp ## Style, types, and the layers of the house
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: $(VENV)/dev.stamp ## Rewrite the sources as the linter wants them
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/dev.stamp ## Measure; prints figures, asserts nothing
	@PATH="$$PATH:/usr/sbin" $(BIN)/python -m benchmarks

constraints: ## Choose the newest versions of every dependency anew, and write them down
	@rm -rf $(VENV)/constraints && $(PYTHON) -m venv $(VENV)/constraints
	@$(VENV)/constraints/bin/python -m pip --disable-pip-version-check --quiet install '.[demo,dev,kubernetes]' 'hatchling>=1.27,<2'
	@{ echo "# The versions that were tested together. Made by make constraints."; \
	   $(VENV)/constraints/bin/python -m pip freeze --exclude podhook; } > constraints.txt
	@rm -rf $(VENV)/constraints

clean: ## Remove what the other commands made
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "podhook needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  version=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing $$version: virtual environments"; \
	    { apt-get install -y -qq --no-install-recommends $$version || \
	      { apt-get update -qq && apt-get install -y -qq --no-install-recommends $$version; }; } >/dev/null; \
	  else \
	    echo "Python cannot make virtual environments here. Install that: sudo apt-get install $$version"; exit 1; \
	  fi; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(BIN)/python pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once)"
	@$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/dev.stamp: $(BIN)/python pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once)"
	@$(PIP) install -c constraints.txt -e '.[demo,dev,kubernetes]'
	@touch $@ $(VENV)/demo.stamp
