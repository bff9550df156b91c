PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup run test test-slow lint bench repro arm-root ui
help: ## Print the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: .venv/complete ## Make .venv and install everything, every version pinned
.venv/complete: pyproject.toml constraints.txt
	@$(PYTHON) -m venv .venv || { echo "no virtual environment can be made: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: setup ## Train, prune and rewind the embedded digits network, every round in MLflow (ARGS="seed=1 ..." overrides)
	$(BIN)/python -m pipeline $(ARGS)

test: setup ## Run the tests (minutes)
	$(BIN)/python -m pytest -m "not slow"

test-slow: setup ## Run the slow tests: kills, whole jobs, the wheel
	$(BIN)/python -m pytest -m slow

lint: setup ## Check style, types and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## Measure speed and memory against peers on this machine (a quarter of an hour); writes docs/benchmarks.md
	$(BIN)/python -m benchmarks

repro: setup arm-root ## From settings (params.yaml) to a bundle that has run on ARM: dvc repro
	$(BIN)/dvc repro

arm-root: setup ## Build the emulated ARM that bundles are verified on (half a minute; kept in ~/.cache)
	$(BIN)/python -m pipeline.deploy.arm

ui: setup ## Open the MLflow UI on what has been run
	$(BIN)/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/runs/mlflow/mlflow.db
