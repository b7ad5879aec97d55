# `make train` and `make test` are all a new checkout needs; `make help` lists
# the rest. Everything lives in .venv, which is made on first use and updated
# when pyproject.toml changes; what needs Triton lives in .venv-kernels. Another
# interpreter: `make test PYTHON=python3.12`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KERNELS := .venv-kernels
# Worker processes of the test suite. Compilation is most of its time, and
# each compile uses about one core.
WORKERS ?= 2
WORKDIR ?= runs/stdlib_bytes
# Further arguments for pytest, the training run or the benchmark:
# `make test ARGS='-m "not slow"'`, `make train ARGS=--config.steps=100`.
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Targets share .venv, and `make -j2 train test` must not install twice at once.
.NOTPARALLEL:
.PHONY: help venv train test test-full test-kernels lint format bench clean

help:  ## list these targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' \
	  Makefile

train: $(VENV)/.base  ## train the standard-library byte model, write a report
	@$(BIN)/python -m experiments.train \
	  --config=experiments/configs/stdlib_bytes.py --workdir="$(WORKDIR)" $(ARGS)

test: $(VENV)/.test  ## run every test, fast and slow
	@$(BIN)/python -m pytest -n $(WORKERS) --dist=worksteal $(ARGS)

test-full: $(VENV)/.test  ## the same with every length and mesh (an hour)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist=worksteal --full $(ARGS)

# Triton either interprets every kernel of a process or compiles them.
test-kernels: $(KERNELS)/.kernels  ## test the GPU kernels, without a GPU
	@TRITON_INTERPRET=1 $(KERNELS)/bin/python -m pytest -n $(WORKERS) \
	  --dist=worksteal $(ARGS) tests/kernels/interpreted
	@$(KERNELS)/bin/python -m pytest -n $(WORKERS) --dist=worksteal $(ARGS) \
	  tests/kernels/compiled

lint: $(VENV)/.lint  ## check lint, format and types
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.lint  ## rewrite the sources in the house format
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

bench: $(VENV)/.base  ## time every operator against a plain lax.scan
	@$(BIN)/python -m benchmarks.operators $(ARGS)

venv: $(VENV)/.test  ## make .venv with the test extra

clean:  ## remove .venv* and every cache, keep runs/
	rm -rf $(VENV) $(KERNELS) .cache .hypothesis .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp file stands for each set of packages, and a larger set for the
# smaller ones. pip's output is shown only when it fails.
$(VENV)/.base: EXTRA :=
$(VENV)/.test: EXTRA := [test]
$(VENV)/.lint: EXTRA := [test,lint]
$(VENV)/.test: COVERS := $(VENV)/.base
$(VENV)/.lint: COVERS := $(VENV)/.base $(VENV)/.test
$(KERNELS)/.kernels: EXTRA := [test,kernels]
$(VENV)/.base $(VENV)/.test $(VENV)/.lint: $(VENV)/.made
$(KERNELS)/.kernels: $(KERNELS)/.made
$(VENV)/.base $(VENV)/.test $(VENV)/.lint $(KERNELS)/.kernels: pyproject.toml
	@echo "installing seqjax$(EXTRA) into $(@D) (a few minutes the first time)"
	@$(@D)/bin/python -m pip --disable-pip-version-check install \
	  --editable '.$(EXTRA)' >$(@D)/pip.log 2>&1 || \
	  { cat $(@D)/pip.log; \
	    echo "make: pip could not install seqjax$(EXTRA); its output is above" >&2; \
	    exit 1; }
	@touch $@ $(COVERS)

# PYTHON that was asked for, on the command line or in the environment, and is
# another one than an environment was made with: it is made anew.
WHICH := -c 'import sys; print(sys.base_prefix, sys.hexversion)'
define ANEW
ifneq ($(wildcard $(1)/.made),)
ifneq ($$(shell $(PYTHON) $$(WHICH)),$$(shell $(1)/bin/python $$(WHICH)))
.PHONY: $(1)/.made
endif
endif
endef
ifneq ($(origin PYTHON),file)
$(foreach one,$(VENV) $(KERNELS),$(eval $(call ANEW,$(one))))
endif

$(VENV)/.made $(KERNELS)/.made:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: no $(PYTHON) here; seqjax needs Python 3.11 or newer:" \
	       "make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1); seqjax needs" \
	       "Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	  exit 1; }
	@[ ! -e $@ ] || echo "making $(@D) anew, for $(PYTHON)"
	@$(PYTHON) -m venv --clear $(@D) || { \
	  echo "make: $(PYTHON) -m venv failed; on Debian and Ubuntu its package" \
	       "is python3-venv" >&2; exit 1; }
	@touch $@
