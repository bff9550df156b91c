PYTHON ?= python3
BIN := .venv/bin
EXPERIMENT ?= digits
METHODS ?= lr_rewinding,weight_rewinding,lottery_ticket,fine_tuning,reinitialisation,random_pruning
SEEDS ?= 0,1,2
BAKEOFF ?= lr_rewinding,weight_rewinding,fine_tuning,filters_lr_rewinding,filters_fine_tuning,amc_fine_tuning,amc_lr_rewinding,amc_weights,uniform_policy,random_policy
LAUNCHER ?= joblib
WORKERS ?= 2
RUNS ?= runs
PYTHONS ?= 3.11 3.12 3.13
PEERS_PYTHON ?= python3.12
ZOO ?= 15x:12 18x:13 28x:15

.PHONY: help setup lock run sweep bakeoff zoo evidence test test-slow lint pictures bench bench-peers docs repro arm-root kernels ui server
help: ## Print the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCKED = $(PIP) --require-hashes \
  -r locks/$$($(BIN)/python -c 'import sys; print("python%d.%d" % sys.version_info[:2])').txt -r locks/torch-$(LOCK).txt
# pip takes the build of PyTorch that it is told of; uv takes all else in a fraction of the time, or pip where uv cannot
PINNED = -c constraints.txt
define installed
@$(PYTHON) -m venv .venv || { echo "no virtual environment can be made: apt-get install python3-venv" >&2; exit 1; }
$(if $(LOCK),$(LOCKED))
$(PIP) --no-compile $(PINNED) torch uv
$(BIN)/uv pip install --quiet --python $(BIN)/python $(PINNED) -e '.[$(EXTRAS)]' || $(PIP) $(PINNED) -e '.[$(EXTRAS)]'
endef
setup: .venv/complete ## Make .venv and install everything, every version pinned (LOCK=cuda or cpu: every hash checked)
.venv/complete: EXTRAS = dev
.venv/complete: pyproject.toml constraints.txt
	$(installed)
	@touch .venv/ready $@
.venv/ready: EXTRAS = deploy,compare,ui,kernels
.venv/ready: pyproject.toml constraints.txt
	$(installed)
	@touch $@

run: .venv/ready ## Train, prune and rewind the embedded digits network, every round in MLflow (ARGS="seed=1 ..." overrides)
	$(BIN)/python -m pipeline $(ARGS)

sweep: setup ## Six methods over three seeds, two jobs at a time, and their comparison (EXPERIMENT METHODS SEEDS LAUNCHER WORKERS ARGS)
	@$(BIN)/python -m pipeline -m +experiment=$(EXPERIMENT) +method=$(METHODS) seed=$(SEEDS) \
	  hydra/launcher=$(LAUNCHER) $(if $(filter joblib,$(LAUNCHER)),hydra.launcher.n_jobs=$(WORKERS)) $(ARGS)

AMC = +experiment=amc_$(EXPERIMENT) name=$(EXPERIMENT)_bakeoff task
JOBS = -m $(AMC)=$(1) +method=$(BAKEOFF) seed=$(SEEDS) pruning.rounds=4 retraining.length=0.6 $(ARGS)
bakeoff: setup ## Weights, filters and AMC's policies at equal epochs, with the time they take (EXPERIMENT SEEDS LAUNCHER WORKERS ARGS)
	@$(BIN)/python -m pipeline $(call JOBS,run) hydra/launcher=$(LAUNCHER) \
	  $(if $(filter joblib,$(LAUNCHER)),hydra.launcher.n_jobs=$(WORKERS))
	@$(BIN)/python -m pipeline $(call JOBS,measure)
	@$(BIN)/python -m pipeline $(AMC)=compare $(ARGS)

zoo: setup arm-root ## The bundles of zoo/, each run on emulated ARM; trains what is missing of cifar10_fast (ARGS)
	@$(BIN)/python -m pipeline +experiment=cifar10_fast $(ARGS)
	@set -e; for each in $(ZOO); do to=cifar10_fast-$${each%:*}; \
	  bundle="$(BIN)/python -m pipeline +experiment=cifar10_fast $(ARGS) artifacts=artifacts/zoo/$$to"; \
	  $$bundle task=bundle deploy.round=$${each#*:} deploy.reference=false 'deploy.kernels=[aarch64,x86_64-avx2]'; \
	  $$bundle task=verify; \
	  rm -rf zoo/$$to; mkdir -p zoo; cp -r artifacts/zoo/$$to/bundle zoo/$$to; cp artifacts/zoo/$$to/verified.json zoo/$$to; done

evidence: ## Keep the records of an experiment's runs in docs/evidence, where task=compare reads them (EXPERIMENT)
	@ls -d $(RUNS)/$(EXPERIMENT)-* > /dev/null 2>&1 || { echo "no run of EXPERIMENT=$(EXPERIMENT) is in RUNS=$(RUNS)" >&2; exit 1; }
	@mkdir -p docs/evidence; cd $(RUNS) && find dense $(EXPERIMENT)-* \( -name round.json -o -name sizes.json -o -name timing.json \) \
	  -exec cp --parents -t $(CURDIR)/docs/evidence {} +

# tests wait for processes a quarter of their time: half as many workers more than cores, four at most; files in the order
# of tests/conftest.py
TESTS = $(BIN)/python -m pytest -n $(shell n=$$(($$(getconf _NPROCESSORS_ONLN) * 3 / 2)); echo $$((n < 4 ? n : 4))) --dist loadfile --no-loadscope-reorder
test: setup ## Run the tests, a few files at a time (minutes; SLOW=1: those of test-slow too)
	$(TESTS) $(if $(SLOW),,-m "not slow")

test-slow: setup ## Run the slow tests: kills, whole jobs, the wheel
	$(TESTS) -m slow

lint: setup ## Check style, types and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

PICTURES = cifar10_fast cifar10_methods resnet20_16
pictures: setup ## Draw docs/method.png, docs/front.png and the comparisons of docs/evidence anew (PICTURES)
	$(BIN)/python docs/method.py
	$(BIN)/python docs/front.py
	@for each in $(PICTURES); do $(BIN)/python -m pipeline +experiment=$$each task=compare \
	  compare.ledgers=docs/evidence compare.document=docs/results-tables.md || exit $$?; done

lock: setup ## Write locks/ anew from pyproject.toml and constraints.txt: a file for each Python, with hashes
	@mkdir -p locks; set -e; for version in $(PYTHONS); do \
	  all=$$($(BIN)/uv pip compile --quiet --generate-hashes --python-version $$version \
	    --python-platform x86_64-manylinux_2_28 --extra dev --constraint constraints.txt --custom-compile-command "make lock" pyproject.toml); \
	  echo "$$all" | awk -v rest=locks/python$$version.txt -v cuda=locks/torch-cuda.txt \
	    '/^[a-z]/ {of = (/^(torch==|triton==|nvidia-|cuda-)/ ? cuda : rest)} /^#/ {of = rest} {print > of}'; done

bench: setup ## Measure speed and memory against peers on this machine (a quarter of an hour); writes docs/benchmarks.md
	$(BIN)/python -m benchmarks

PEERS = .venv-peers
$(PEERS)/complete: benchmarks/peers/requirements.txt benchmarks/peers/requirements-aarch64.txt
	@$(PEERS_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2> /dev/null || \
	  { echo "PEERS_PYTHON=$(PEERS_PYTHON) is no Python 3.12 or newer, which the other engines need" >&2; exit 1; }
	$(PEERS_PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/peers/requirements.txt
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --upgrade \
	  --python-version 3.11 --implementation cp --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
	  --platform manylinux2014_aarch64 --target $(PEERS)/aarch64 -r benchmarks/peers/requirements-aarch64.txt
	@touch $@
bench-peers: setup arm-root $(PEERS)/complete ## Beside ncnn, MNN and LiteRT, here and on emulated boards (a quarter of an hour; PEERS_PYTHON)
	$(BIN)/python -m benchmarks.peers $(ARGS)

docs: setup ## Make the documentation site in site/; a broken link is an error
	$(BIN)/python docs/settings.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'to read it: $(BIN)/python -m http.server -d site, and then http://127.0.0.1:8000'

repro: setup arm-root ## From settings (params.yaml) to a bundle that has run on ARM: dvc repro
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro

arm-root: setup ## Build the emulated ARM that bundles are verified on (half a minute; kept in ~/.cache)
	$(BIN)/python -m pipeline.deploy.arm

kernels: setup ## Build the sparse engine for every processor it is for (kept in ~/.cache)
	$(BIN)/python -m pipeline.deploy.kernels

ui: setup ## Serve the MLflow UI on what has been run
	@echo 'open http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&searchFilter=tags.kind%20!%3D%20%22round%22'
	@echo '(1 is the first experiment; without the search, rounds are shown too)'
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/runs/mlflow/mlflow.db

server: setup ## An MLflow server for a team, with PostgreSQL, on loopback (HOST PORT)
	@$(BIN)/python -m pipeline.tracking.server $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT))
