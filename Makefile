# The commands that a person would type. `make demo` and `make test` set everything up by themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-trainers test-rest test-cuda test-all bench lint check format clean

demo: $(VENV)/.ready
	$(BIN)/supernet demo

# Each test uses one core, so two halves run side by side; each prints as a whole when it ends.
test: $(VENV)/.ready
	$(MAKE) --jobs=2 --output-sync=target test-trainers test-rest

test-trainers: $(VENV)/.ready
	$(BIN)/pytest tests/trainers

test-rest: $(VENV)/.ready
	$(BIN)/pytest tests --ignore tests/trainers

test-cuda: $(VENV)/.ready
	$(BIN)/pytest tests/test_cuda.py

test-all: $(VENV)/.ready
	$(BIN)/pytest -m "slow or not slow"

# About an hour and a half on 2 cores, which should have nothing else to do. Each of these takes options: see --help.
bench: $(VENV)/.ready
	$(BIN)/python -m benchmarks.mixture --network darts
	$(BIN)/python -m benchmarks.mixture --network darts --depth 3 --batch 16 --order 1 --remedies
	$(BIN)/python -m benchmarks.mixture --network nas_bench_201 --batch 16 64
	$(BIN)/python -m benchmarks.mixture --network transformer --batch 16 64
	$(BIN)/python -m benchmarks.sampled
	$(BIN)/python -m benchmarks.evaluating
	$(BIN)/python -m benchmarks.elastic
	$(BIN)/python -m benchmarks.integer_programs
	$(BIN)/python -m benchmarks.building
	$(BIN)/python -m benchmarks.costs
	$(BIN)/python -m torch.distributed.run --standalone --nproc-per-node 2 -m benchmarks.processes

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@
