# Everything runs in .venv, made from requirements.lock by the first target that needs it. `make help` lists the targets.

VENV    ?= .venv
WORKERS ?= 0                # pytest processes: `make test WORKERS=2`; 0 runs in one
TIER    ?= sandbox          # of `make reproduce`: sandbox or paper
TABLE   ?=                  # which of experiments/: `make reproduce TABLE=ddpo_table1`; none: all
SEEDS   ?=                  # in place of a table's own: `make reproduce SEEDS=0`
QUICK   ?=                  # of `make bench`: QUICK=1 for the short one
ARGS    ?=                  # more arguments: `make demo ARGS="seed=1"`, `make test ARGS="-k ddim"`
UV      ?= uv               # only `make lock` needs it

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# the first of these that starts and is new enough; PYTHON=/path/to/python3 chooses another
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	$$p -c '$(NEW_ENOUGH)' 2>/dev/null && { echo $$p; break; }; done)

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-browser prove compare equal-budget goodhart reproduce bench parity check format lock wheel clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv and install the locked packages into it (once; demo, test and check do it too)
	@echo "$(VENV) is ready"

# --no-build-isolation: hatchling comes from the lock, so this line fetches nothing
$(STAMP): pyproject.toml requirements.lock
	@$(or $(PYTHON),false) -c '$(NEW_ENOUGH)' || { \
		echo "alignbench needs Python 3.11 or newer, and $(or $(PYTHON),python3) is not:" \
		"make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing requirements.lock into $(VENV): about 3 GB to fetch, 6 GB on disk, a few minutes, once."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# nothing is downloaded at run time, and an attempt is an error; torch on one thread is the fastest for models this small
demo test test-slow test-browser prove compare equal-budget goodhart: export HF_HUB_OFFLINE := 1
test test-slow test-browser prove equal-budget goodhart: export OMP_NUM_THREADS ?= 1

demo: $(STAMP)  ## train the sandbox with DDPO and make its page of results, about 2 minutes
	@$(BIN)/python -m alignbench $(ARGS)

test: $(STAMP)  ## the fast tests; with WORKERS=2 about a quarter of an hour on 2 cores
	@$(PYTEST) -m "not slow and not browser"

test-slow: $(STAMP)  ## the tests with real processes, kills and many repeats, and those in a browser
	@$(PYTEST) -m "slow or browser"

test-browser: $(STAMP)  ## the tests that open a page in a browser (skipped where none is found)
	@$(PYTEST) -m browser

prove: $(STAMP)  ## every method against its closed form, a table of exact and reached, at most 2 minutes on 1 core
	@$(BIN)/python tests/proofs.py

compare: $(STAMP)  ## every method on the sandbox, three seeds: a table and pictures, at most 45 minutes on 2 cores
	@$(BIN)/python experiments/sandbox_methods/compare.py $(ARGS)

equal-budget: $(STAMP)  ## four methods, five seeds, one budget of reward queries: a table, about 25 minutes on 1 core
	@$(BIN)/python -m alignbench -m method=ddpo,kl_rlhf,d3po,pxpo seed=0,1,2,3,4 \
		budget=reward_queries budget.reward_queries=256 eval.every=1 output=outputs/equal_budget
	@$(BIN)/python -m alignbench table outputs/equal_budget to=experiments/equal_budget

goodhart: $(STAMP)  ## a learned reward over-optimised on purpose, a KL against it, and an unbiased one: a table, about 45 minutes on 1 core
	@$(BIN)/python -m alignbench -m experiment=goodhart method.reward_weight=1000,0.1,0.01 seed=0,1,2 output=outputs/goodhart
	@$(BIN)/python -m alignbench -m experiment=goodhart reward=smooth_panel seed=0,1,2 output=outputs/goodhart
	@$(BIN)/python -m alignbench table outputs/goodhart to=experiments/goodhart

ifeq ($(strip $(TIER)),sandbox)
reproduce: export HF_HUB_OFFLINE := 1
reproduce: export OMP_NUM_THREADS ?= 1
endif
reproduce: $(STAMP)  ## papers' tables: on the sandbox whether their claims hold, with TIER=paper their numbers on a GPU
	@$(BIN)/python -m alignbench reproduce $(TABLE) tier=$(strip $(TIER)) $(addprefix seeds=,$(strip $(SEEDS))) \
		launcher=local launcher.jobs=2 $(ARGS)

bench: export HF_HUB_OFFLINE := 1
bench: $(STAMP)  ## speed beside the plain loop of public scripts, at most 40 minutes on 2 cores, alone; QUICK=1: 5 minutes
	@$(BIN)/python benchmarks/bench.py $(if $(strip $(QUICK)),--quick) $(ARGS)

# not offline: uv fetches what its cache lacks; the judges themselves ask no hub
parity: export OMP_NUM_THREADS ?= 2
parity: $(STAMP)  ## native judges against the official packages: 2 minutes on 2 cores, 7 GB of memory; the first time 2.7 GB to fetch, 6 GB on disk
	@HF_HUB_OFFLINE=1 $(BIN)/python -m alignbench parity $(ARGS)

check: $(STAMP)  ## lint, format, types, spelling
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy src
	@$(BIN)/codespell

format: $(STAMP)  ## mend what ruff can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

lock:  ## write requirements.lock again from pyproject.toml, keeping the versions that still fit (needs uv)
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: install it, or make lock UV=/path/to/uv" >&2; exit 1; }
	$(UV) pip compile --universal --generate-hashes --no-emit-index-url --no-annotate --no-header \
		--python-version 3.11 --extra dev --quiet --output-file requirements.lock pyproject.toml

wheel: $(STAMP)  ## build the wheel into dist/
	@$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

clean:  ## remove caches and builds; .venv and outputs stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -not -path './$(VENV)/*' -not -path './outputs/*' -prune -exec rm -rf {} +
