# The verbs of this project; `make` alone lists them. People and CI use the same ones.

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Bytecode must be written: importing TensorFlow takes 5 s with it and 22 s without.
unexport PYTHONDONTWRITEBYTECODE
export LANE
export UV_PYTHON_DOWNLOADS ?= never

# Sets up what is missing, then runs a command in the locked environment; QUIETLY says the lane
# no second time.
RUN := @sh scripts/env.sh
QUIETLY := @SAFELIGHT_QUIET=1 sh scripts/env.sh

# Where `make demo` works, and more arguments for pytest: make test ARGS="-k ingest -x".
WORKDIR ?= demo
ARGS ?=
# Files of tests at a time: one a core, and no more than memory has room for.
WORKERS ?= -n logical --maxprocesses 4 --dist loadfile

.PHONY: help
help:
	@echo "Safelight: from a folder of labelled images to a served classifier, on TFX."
	@echo
	@echo "  make demo           sets up, then trains, checks and publishes a digit classifier"
	@echo "                      from 5,000 real images (3 minutes after the install)"
	@echo "  make setup          sets up alone: uv in .tools/, the locked packages in .venv/;"
	@echo "                      with EXTRAS=gpu, CUDA's libraries too; with gcs or s3, what"
	@echo "                      reads data in buckets; several as in EXTRAS='gpu s3'"
	@echo "  make test           lint, types, layers and the essential tests; on an older system, as"
	@echo "                      root, also a small run and some tests in the current lane"
	@echo "  make test-slow      the same with every test"
	@echo "  make lint           lint, types and layers alone"
	@echo "  make format         formats the code and sorts its imports"
	@echo "  make test-current   the same as make test in the current lane (TFX 1.21): natively, or"
	@echo "                      in a Debian 13 root folder, as root, where glibc is too old"
	@echo "  make smoke-current  a small run and a part of the tests there"
	@echo "  make compare-lanes  both lanes on the same data, side by side"
	@echo "  make audit          known vulnerabilities in what each lane locks"
	@echo "  make image          builds deploy/Dockerfile by buildah, as root"
	@echo "  make clean          removes what tests and linters left, and the demo's workdir"
	@echo "  make distclean      also removes .venv/, .tools/ and .cache/"
	@echo
	@echo "make picks the lane from the machine: legacy (TFX 1.16, Python 3.10) or current"
	@echo "(TFX 1.21, Python 3.11-3.13, glibc 2.39). Choose with: make demo LANE=legacy"
	@echo "After make demo, the command is .venv/bin/safelight; start with: safelight --help"

.PHONY: setup
setup:
	$(RUN) sh -c 'echo "Ready: $$(command -v safelight)"'

.PHONY: demo
demo:
ifeq ($(LANE),current)
	@SHARE="$(abspath $(WORKDIR))" sh scripts/current.sh safelight demo --workdir "$(abspath $(WORKDIR))"
else
	$(RUN) safelight demo --workdir "$(WORKDIR)"
endif

.PHONY: lint
lint:
	$(RUN) ruff check
	$(QUIETLY) ruff format --check
	$(QUIETLY) lint-imports --no-logo
	$(QUIETLY) mypy

.PHONY: format
format:
	$(RUN) ruff check --fix
	$(QUIETLY) ruff format

.PHONY: test
test: lint
	$(QUIETLY) pytest -m "not slow" $(WORKERS) $(ARGS)
	$(if $(ARGS),,@sh scripts/other_lane.sh)

.PHONY: test-slow
test-slow: lint
	$(QUIETLY) pytest $(WORKERS) $(ARGS)

.PHONY: smoke-current test-current
smoke-current:
	@sh scripts/current.sh sh scripts/smoke.sh
test-current:
	@sh scripts/current.sh make test ARGS="$(ARGS)"

# What smoke-current runs in there; here it is the same against this machine's own lane.
.PHONY: smoke
smoke:
	$(RUN) sh scripts/smoke.sh

.PHONY: compare-lanes
compare-lanes:
	$(RUN) python -m benchmarks.lanes

.PHONY: audit
audit:
	$(RUN) python scripts/audit.py

.PHONY: image
image:
	@sh scripts/image.sh cpu

.PHONY: clean
clean:
	rm -rf demo build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find pipeline components schemas tests -name __pycache__ -type d -exec rm -rf {} +

.PHONY: distclean
distclean: clean
	rm -rf .venv .venv-legacy .venv-current .tools .cache
