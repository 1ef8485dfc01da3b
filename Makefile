# secagg: `make demo` shows a round, `make test` proves it, `make help` lists the rest.
#
# TORCH_INDEX  where torch's CPU build comes from on Linux (default: PyTorch's own CPU index).
#              TORCH_INDEX=none takes the ordinary registry's build; on Linux that one brings several
#              gigabytes of CUDA packages. Elsewhere the ordinary build is the CPU build.
# PYTHON       the interpreter to make .venv with (default: the first of those below that works).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PYTHON ?=
PYTHONS = python3 python3.13 python3.12 python3.11 python3.14
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH = $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' constraints.txt)

# The demonstration; each variable that is set is passed on, the command has the defaults.
TASK ?=
SCHEME ?=
TENANTS ?=
ROUNDS ?=
KILL ?=
SEED ?=
OUT ?= build/demo
DEMO_FLAGS = $(if $(TASK),--task $(TASK)) $(if $(TENANTS),--tenants $(TENANTS)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
	$(if $(KILL),--kill $(KILL)) $(if $(SEED),--seed $(SEED)) $(if $(SCHEME),--scheme $(SCHEME)) \
	--out $(OUT)

JOBS ?= 2
# `pip install -e .[fuzz]` brings atheris, with which inputs are bred by coverage.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?=
# Options of `python -m tests.mutation`, such as --module secagg/checks.py or --sample 100 --seed 1.
MUTANTS ?=
# The tests that have to run every line and branch of secagg/ between them.
COVERING = tests/core tests/architecture/test_cli.py
# Coverage sees nothing of what numba has compiled: these run without the compiler, on small rings.
UNCOMPILED = tests/core/test_ckks_kernels.py tests/core/test_vectors.py -k "kernels or (stated_outcome and ckks)"
# Options of `python -m benchmarks`, such as --quick, --full, --record or --case 10:1e6, and of
# `python -m benchmarks.scale`.
BENCH_FLAGS ?=
SCALE_FLAGS ?=
# PyTorch starts one thread per core in every process; the tenants share the cores already.
export OMP_NUM_THREADS ?= 1
# Flower and Ray report their use to their makers unless they are told not to.
export FLWR_TELEMETRY_ENABLED ?= 0
export RAY_USAGE_STATS_ENABLED ?= 0

BIN = .venv/bin
READY = .venv/.installed

# An environment for each stack that secagg_embed has an adapter for. In one for all, what flwr caps
# (protobuf below 7, pycryptodome below 4, rich below 15) would hold for the others too, and [dev]
# needs pycryptodome 4.4. Ray has the version that flwr[simulation] pins.
STACKS = flower nvflare ray
INTO_flower = '.[flower,ckks,testing]' 'flwr[simulation]' pytest mypy
INTO_nvflare = '.[nvflare,ckks,testing]' pytest
INTO_ray = '.[ray,ckks,testing]' pytest
# pytest's own, such as STACK_FLAGS="-m 'not processes' -x".
STACK_FLAGS ?=

.PHONY: help .venv $(STACKS:%=.venv-%) $(STACKS:%=test-%) test-stacks types-flower demo test test-slow vectors fuzz coverage mutants lint format types contracts wheel bench bench-scale protos clean distclean

help: ## this list
	@sed -n 's/^\([a-z.][a-z.-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'
	@echo
	@echo "  make demo TASK=timeseries               (companies with real series; or TASK=text)"
	@echo "  make demo SCHEME=masking TENANTS=5 ROUNDS=3 KILL=1 OUT=build/demo   (or SCHEME=ckks)"
	@echo "  make .venv PYTHON=python3.12 TORCH_INDEX=none   (see the top of the Makefile)"

.venv: $(READY) ## the environment that everything else runs in

$(READY): pyproject.toml constraints.txt
	@echo "== environment (.venv): the first time takes minutes, torch is the largest part"
	@.ci/new-environment .venv $(or $(PYTHON),$(PYTHONS))
	@.ci/install-torch $(BIN)/python "$(TORCH)" "$(TORCH_INDEX)"
	@echo "== the other packages, pinned by constraints.txt"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@
	@echo "== .venv is ready: $$(du -sh .venv | cut -f1)"

$(STACKS:%=.venv-%): .venv-%: .venv-%/.installed

$(STACKS:%=.venv-%/.installed): .venv-%/.installed: pyproject.toml constraints/%.txt
	@echo "== environment (.venv-$*): secagg beside the stack, pinned by constraints/$*.txt"
	@.ci/new-environment .venv-$* $(or $(PYTHON),$(PYTHONS))
	@.venv-$*/bin/python -m pip install --disable-pip-version-check -c constraints/$*.txt -e $(INTO_$*)
	@touch $@
	@echo "== .venv-$* is ready: $$(du -sh .venv-$* | cut -f1)"

demo: $(READY) ## owner, coordinator and tenants as processes over mTLS; report in build/demo
	@$(BIN)/secagg demo $(DEMO_FLAGS)

test: $(READY) ## everything but what is marked slow
	@$(BIN)/python -m pytest -n $(JOBS)

test-slow: $(READY) ## what is marked slow
	@$(BIN)/python -m pytest -m slow

test-stacks: $(STACKS:%=test-%) ## beside Flower, NVFLARE and Ray, each in an environment of its own

test-flower: types-flower ## the Flower adapter, its types too, in .venv-flower
test-nvflare: ## the NVFLARE adapter, in .venv-nvflare
test-ray: ## the simulation on Ray, in .venv-ray

$(STACKS:%=test-%): test-%: .venv-%/.installed
	@.venv-$*/bin/python -m pytest tests/stacks/test_beside.py tests/stacks/$* $(STACK_FLAGS)

types-flower: .venv-flower/.installed # flwr is typed: what is Any in .venv has its types here
	@.venv-flower/bin/mypy embed/secagg_embed/flower

vectors: $(READY) ## regenerate the committed test vectors and the fuzz targets' seeds
	@$(BIN)/python tests/vectors/generate.py
	@$(BIN)/python fuzz/corpus.py
	@git --no-pager diff --stat -- tests/vectors fuzz/corpus

fuzz: $(READY) ## every decoder of foreign bytes, FUZZ_SECONDS=60 in all (FUZZ_TARGETS=... some)
	@$(BIN)/python fuzz/run.py --seconds $(FUZZ_SECONDS) $(FUZZ_TARGETS)

coverage: $(READY) ## every line and branch of secagg/, test kit included, is run by a test
	@NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -q $(UNCOMPILED) --cov --cov-report=
	@$(BIN)/python -m pytest -n $(JOBS) -q $(COVERING) --cov --cov-append --cov-report=term --cov-fail-under=100

mutants: $(READY) ## break secagg/ in small ways, see which tests notice; MUTANTS="--sample 100 --seed 1"
	@nice $(BIN)/python -m tests.mutation --jobs $(JOBS) $(MUTANTS)

lint: $(READY) ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(READY) ## let ruff fix and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(READY) ## mypy --strict on every package
	@$(BIN)/mypy

contracts: $(READY) ## who may import whom, and the other architecture tests, on the built wheel
	@$(BIN)/python -m pytest tests/architecture

wheel: $(READY) ## dist/*.whl, tried in an environment of its own with the base dependencies
	@$(BIN)/python .ci/check_wheel.py

bench: $(READY) ## ours, Flower, NVFLARE and the machine's limits; tables and plots in build/bench
	@$(BIN)/python -m benchmarks $(BENCH_FLAGS)

bench-scale: $(READY) ## a thousand tenants in one process, and a hundred million values
	@$(BIN)/python -m benchmarks.scale $(SCALE_FLAGS)

protos: ## regenerate the committed protobuf code, in an environment of its own
	@protos/generate.sh
	@git --no-pager diff --stat -- protos

clean: ## build products and caches; keeps the environments
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis htmlcov .coverage
	@find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and the environments
	@rm -rf .venv $(STACKS:%=.venv-%)
