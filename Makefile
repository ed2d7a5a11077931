PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
BENCH_READY := .venv/.ready-benchmarks

.PHONY: help demo test test-all bench campaign orders figures lint format

help:
	@echo "make demo      train on real handwritten digits and write a report"
	@echo "make test      run the tests (under ten minutes)"
	@echo "make test-all  run the long ones too"
	@echo "make bench     measure speed and memory beside other libraries (a quarter of an hour)"
	@echo "make orders    measure the order of every sampler beside other libraries (some minutes)"
	@echo "make figures   draw the figures of docs/mathematics and of docs/choosing-a-sampler.md"
	@echo "make campaign  run the long measurements that are missing (hours; stop and go on at will);"
	@echo "               ONLY=equal chooses some, CORES=0 pins them, ARGS=--list says what there is"
	@echo "make lint      check format, style and types"
	@echo "make format    put format and style right"
	@echo "Each sets up .venv first, where it is not there yet; PYTHON=python3.12 chooses the interpreter."

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Unfog needs Python 3.11 or newer: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[data]' --group dev
	touch $(READY)

# --no-deps keeps torchvision out; the file says why.
$(BENCH_READY): $(READY) benchmarks/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement benchmarks/requirements.txt
	touch $(BENCH_READY)

demo: $(READY)
	rm -rf runs/demo
	$(BIN)/unfog train digits --out runs/demo
	@echo "The report is at $(CURDIR)/runs/demo/report.html"

# One thread in each of two processes: more threads than cores slow the tests down.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 -m ''

bench: $(BENCH_READY)
	$(BIN)/python -m benchmarks.bench

campaign: $(BENCH_READY)
	$(BIN)/python -m benchmarks.campaign $(if $(ONLY),--only '$(ONLY)') $(if $(CORES),--cores $(CORES)) $(ARGS)

figures: $(READY)
	$(BIN)/python -m benchmarks.figures

shapes: $(READY)
	$(BIN)/python -m benchmarks.shapes

near-copies: $(READY)
	$(BIN)/python -m benchmarks.near_copies digits mnist cifar10

orders: $(BENCH_READY)
	$(BIN)/python -m benchmarks.orders

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
