# Everything lives in .venv; a fresh Debian 12 with python3, pip and make needs nothing else.
# python3-venv is not there, so the environment is made without pip, and pip is put into it.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The tests begin the command some hundred times: its modules are compiled once.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

help:  ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: .venv/.runtime  ## run the main job against the embedded simulator, and look at the result
	@$(BIN)/bulkfetch demo

# One more than there are cores, since many tests wait.
test: .venv/.dev  ## run the tests
	$(BIN)/python -m pytest -n $$($(BIN)/python -c "import os; print(os.cpu_count() + 1)")

soak: .venv/.dev  ## run 5,000 patients through faults and power cuts, in some minutes
	$(BIN)/python -m pytest -m soak

fuzz: .venv/.dev  ## throw damaged manifests and answers at the readers, a minute each (SECONDS=60)
	$(BIN)/python tests/fuzz/fuzz_manifest.py --seconds $(or $(SECONDS),60)
	$(BIN)/python tests/fuzz/fuzz_records.py --seconds $(or $(SECONDS),60)

bench: .venv/.dev  ## measure against the tools people use now, in some ten minutes (ROUNDS=3)
	$(BIN)/python -m benchmarks $(if $(ROUNDS),--rounds $(ROUNDS))

scale: .venv/.dev  ## measure how a run scales, in some ten minutes: docs/performance/*.csv, *.png
	$(PIP) --group plots
	$(BIN)/python -m benchmarks scale --save docs/performance

docs: .venv/.dev  ## make the documentation's site in build/site
	$(BIN)/python -m sphinx -qEW --keep-going -d build/site-cache -c docs . build/site
	@echo "open build/site/index.html"

lint: .venv/.dev  ## style, format, types, and the walls between the modules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.dev  ## format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

generated: .venv/.dev  ## write anew what is made from the code: manual page, schemas
	$(BIN)/python docs/generated.py

wheel: .venv/.dev  ## build the wheel and try it in an environment of its own
	sh .ci/try-wheel $(BIN)/python

clean:  ## remove what was built, and the environment
	rm -rf .venv build dist bulkfetch-demo

.venv/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv --without-pip .venv
	$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check \
		--constraint constraints.txt pip
	$(PIP) --editable '.[cloud,parquet,report]'
	@touch $@

.venv/.dev: .venv/.runtime
	$(PIP) --group dev
	@touch $@

.PHONY: help demo test soak fuzz bench scale docs lint format generated wheel clean
