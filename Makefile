# `make` alone prints the list of targets.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -qq
READY := $(VENV)/.ready
PYTEST_ARGS ?=
ARGS ?=
COMPILE := build/pip-tools/bin/pip-compile -q --generate-hashes --allow-unsafe --strip-extras \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links $(UPGRADE)

# The first interpreter that runs, is new enough and can make a virtual environment.
define find_python
python=; for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3; do \
	"$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
		2>/dev/null && { python=$$candidate; break; }; done; \
[ -n "$$python" ] || { echo "No Python >= 3.11 with venv on PATH. Install one (Debian:" \
	"python3 and python3-venv) or name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
endef

# pytest ends with 5 if the files that PYTEST_ARGS names have no such test.
NONE_IN_FILES = [ "$$?$(findstring tests/,$(PYTEST_ARGS))" = 5tests/ ]

DOCKER ?= docker
BUILD_ARGS ?=
IMAGES := build/images
HOST_ARCH := $(patsubst aarch64,arm64,$(patsubst x86_64,amd64,$(shell uname -m)))
ARCH ?= $(HOST_ARCH)
LOAD ?= yes

.PHONY: help demo demo-access localstack control-plane test test-real coverage chart cluster bench strangers \
	chaos soak accuracy fuzz check docs images constraints clean

help: ## print this list
	@echo "byoc-agents: what can be done here"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## the three daemons against an embedded S3, SQS and control plane
	@$(PY) -m lab.demo $(ARGS)

demo-access: $(READY) ## one access of an engineer, request to evidence; as root with Tailscale; ARGS=--loopback
	@$(PY) -m lab.demo.access $(ARGS)

localstack: $(READY) ## the daemons against LocalStack, ClickHouse, Prometheus; ARGS=--once ends by itself
	@$(PY) -m lab.real.trial $(ARGS)

control-plane: $(READY) ## the vendor's side on chdb, fed by the daemons; ARGS="--once" or "--store URL"
	@$(PY) -c "from lab.real.parts import install; install.chdb()"
	@$(PY) -m lab.control_plane $(ARGS)

test: $(READY) ## every test that needs no root, no network and no real part
	@$(PY) -m pytest -n auto -m "not real" --ignore=tests/real --ignore=tests/cluster $(PYTEST_ARGS)

test-real: $(READY) ## fetch LocalStack, ClickHouse, Alertmanager, ... and test against them
	@$(PY) -m lab.real.parts.install
	@$(PY) -m pytest -n 2 --dist loadfile --ignore=tests/cluster -m "real and not quiet" $(PYTEST_ARGS) || $(NONE_IN_FILES)
	@$(PY) -m pytest --ignore=tests/cluster -m "real and quiet" $(PYTEST_ARGS) || $(NONE_IN_FILES)
	@FAULT_SEEDS=40 $(PY) -m pytest -n auto -rP tests/faults

coverage: $(READY) ## branch coverage of `make test`: build/coverage/index.html; fails below the floor
	@$(PY) -m pytest -n auto -m "not real" --ignore=tests/real --ignore=tests/cluster --cov --cov-report= \
		$(PYTEST_ARGS)
	@$(PY) -m coverage html -q -d build/coverage
	@$(PY) -m coverage report --skip-covered

chart: $(READY) ## lint and render the Helm chart with Helm 3 and 4 into build/chart; ARGS=--update
	@$(PY) -m lab.real.chart $(ARGS)

cluster: $(READY) ## the chart on a Kubernetes of its own, as root; ARGS=--short, ARGS=--keep for a person
	@$(PY) -m lab.cluster $(ARGS)

fuzz: $(READY) ## coverage-guided fuzzing of every parser of outside input; FUZZ="--seconds 300 webhook"
	@$(PY) -m lab.fuzz.run $(FUZZ)

bench: $(READY) ## what it costs, compared with collectd, Alertmanager, ...: build/bench.json (an hour)
	@$(PY) -m lab.bench $(ARGS)

strangers: $(READY) ## unknown clients against each daemon in its memory limit, as root (6 minutes)
	@$(PY) -m lab.strangers $(ARGS)

chaos: $(READY) ## break everything for minutes, then compare: ARGS="--seed 7 --hours 1"
	@$(PY) -m lab.chaos $(ARGS)

soak: $(READY) ## an hour of steady load; nothing may grow: build/soak.json, build/soak.svg
	@$(PY) -m lab.chaos --soak --hours 1

accuracy: $(READY) ## billed CPU against the kernel's counters, as root; ARGS="--mixed 3600" for an hour
	@$(PY) -m lab.real.accuracy $(ARGS)

check: $(READY) ## ruff (lint and format) and mypy
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

docs: build/docs/.ready ## build the documentation site into build/site; any warning is an error
	@NO_MKDOCS_2_WARNING=1 build/docs/bin/python -m mkdocs build --strict

images: ## build the images into build/images and load them; BUILD_ARGS and ARCH as images/README.md says
	@version=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' agents/byoc_agents/__init__.py); \
	for arch in $(ARCH); do \
		rm -rf "$(IMAGES)/$$arch"; \
		DOCKER_BUILDKIT=1 BUILDX_NO_DEFAULT_ATTESTATIONS=1 $(DOCKER) build --quiet --network host --file images/Dockerfile \
			--platform linux/$$arch --output type=local,dest="$(IMAGES)/$$arch" \
			--build-arg VERSION=$$version --build-arg REVISION="$$(git rev-parse HEAD || echo unknown)" \
			--build-arg CREATED="$$(git log -1 --format=%cI)" $(BUILD_ARGS) . >/dev/null; \
	done; \
	if [ -n "$(LOAD)" ] && [ -d "$(IMAGES)/$(HOST_ARCH)" ]; then \
		tar -C "$(IMAGES)/$(HOST_ARCH)" -c . | $(DOCKER) load --quiet; fi

constraints: ## pin the dependencies again; UPGRADE=--upgrade takes newer versions
	@$(find_python); [ -x build/pip-tools/bin/pip-compile ] || { \
		"$$python" -m venv build/pip-tools; build/pip-tools/bin/pip install -qq pip-tools==7.6.2; }
	@export CUSTOM_COMPILE_COMMAND="make constraints"; set -x; \
	$(COMPILE) pyproject.toml -o constraints/runtime.txt; \
	$(COMPILE) pyproject.toml -c constraints/runtime.txt --all-build-deps \
		--extra test -o constraints/dev.txt; \
	$(COMPILE) constraints/access.in -c constraints/dev.txt -o constraints/access.txt; \
	$(COMPILE) constraints/images.in -c constraints/dev.txt -o constraints/images.txt; \
	$(COMPILE) constraints/control-plane.in -c constraints/dev.txt -o constraints/control-plane.txt; \
	$(COMPILE) constraints/real.in -c constraints/dev.txt -o constraints/real.txt; \
	$(COMPILE) constraints/real-25.8.in -c constraints/dev.txt -o constraints/real-25.8.txt; \
	$(COMPILE) constraints/docs.in -c constraints/dev.txt -o constraints/docs.txt

clean: ## remove everything that make made: .venv, build, caches
	@rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# From nothing to a working environment; the stamp makes the second run start at once.
$(READY): constraints/dev.txt pyproject.toml control-plane/pyproject.toml
	@$(find_python); "$(PY)" -c pass 2>/dev/null || { \
		echo "Making $(VENV) with $$("$$python" -V) and the pinned packages (a minute, once) ..."; \
		"$$python" -m venv --clear $(VENV); }
	@$(PIP) install --require-hashes -r constraints/dev.txt
	@$(PIP) install --no-deps --no-build-isolation -e . -e ./control-plane
	@touch $@

# The documentation's tools have an environment of their own: the product and the tests never need them.
build/docs/.ready: constraints/docs.txt
	@$(find_python); "$$python" -m venv --clear build/docs
	@build/docs/bin/python -m pip --disable-pip-version-check -qq install --require-hashes -r $<
	@touch $@
