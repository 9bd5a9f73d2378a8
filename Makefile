# Two commands need nothing but Python 3.11+, make and git:
#   make demo    trains, exports and samples a tiny LLaDA on this machine
#   make test    runs every test that this machine can run; make test-quick: in a few minutes, most
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin

.PHONY: demo test test-ranks test-slurm test-quick coverage check docs docs-pages bench bench-gpu clean

demo: $(VENV)/package
	PATH="$(BIN):$$PATH" $(BIN)/python -m llada_sft.demo

test: $(VENV)/dev
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 tests/unit
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest tests/browser
	@echo "tests/distributed and tests/slurm run side by side; each is shown when it has ended"
	$(MAKE) --no-print-directory --jobs 2 --output-sync test-ranks test-slurm

# SLURM waits most of the time: the trainings of tests/distributed run meanwhile.
test-ranks: $(VENV)/dev
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest tests/distributed tests/gpu

test-slurm: $(VENV)/dev
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest tests/slurm

QUICK_TRAINING := tests/distributed/test_training.py::test_ranks_and_accumulation_are_the_same_thing
test-quick: $(VENV)/dev
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 -m "not slow" tests/unit $(QUICK_TRAINING)

# Fails below the share of lines that pyproject.toml asks for.
coverage: $(VENV)/dev
	$(BIN)/python -m coverage erase
	PATH="$(BIN):$$PATH" $(BIN)/python -m coverage run -m pytest -n 2 tests/unit
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --skip-covered --sort=cover

check: $(VENV)/dev docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	for script in slurm/*.sbatch slurm/*.sh .ci/*; do bash -n "$$script" || exit; done

# The site, in build/docs: a dead link is an error. docs-pages: the pages that are made from the code.
docs: $(VENV)/dev
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs build/docs

docs-pages: $(VENV)/dev
	$(BIN)/python docs/write.py

# Tables on the screen and JSON files in benchmarks/results/: cpu/ in about twenty minutes, gpu/ on one
# H100 within nine. What was measured there before is replaced.
RESULTS := benchmarks/results
bench: $(VENV)/dev
	mkdir -p $(RESULTS)/cpu
	$(BIN)/python benchmarks/step.py --preset wide-head --layers 8 --rows 32 --mean-tokens 372 \
	  --most-tokens 1024 --ways others --compile --repeat 1 --out $(RESULTS)/cpu/step.json
	$(BIN)/python benchmarks/host.py --out $(RESULTS)/cpu/host.json
	$(BIN)/python benchmarks/packing.py --out $(RESULTS)/cpu/packing.json
	$(BIN)/python benchmarks/head.py --out $(RESULTS)/cpu/head.json
	$(BIN)/python benchmarks/generate.py --out $(RESULTS)/cpu/generate.json
	$(BIN)/python benchmarks/generate_in_blocks.py --out $(RESULTS)/cpu/generate_in_blocks.json
	$(BIN)/python benchmarks/attention.py --out $(RESULTS)/cpu/attention.json

# With the Python that has the GPU's torch, which need not be that of .venv: make bench-gpu GPU=python3
GPU ?= $(BIN)/python
bench-gpu:
	mkdir -p $(RESULTS)/gpu
	$(GPU) benchmarks/step.py --device cuda --preset llada8b-width --layers 4 --ways others \
	  --compile --packed 16384 --out $(RESULTS)/gpu/others.json
	$(GPU) benchmarks/step.py --device cuda --preset llada8b-width --layers 4 --compile \
	  --packed 4096 16384 --product --out $(RESULTS)/gpu/step_4.json
	$(GPU) benchmarks/step.py --device cuda --preset llada8b-width --layers 32 --compile \
	  --packed 4096 16384 --out $(RESULTS)/gpu/step_32.json
	$(GPU) benchmarks/attention.py --device cuda --dtype bfloat16 --heads 16 --kv-heads 4 \
	  --head-dim 128 --out $(RESULTS)/gpu/attention.json

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/package: pyproject.toml constraints.txt | $(VENV)/created
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[plot]'
	touch $@

$(VENV)/dev: pyproject.toml constraints.txt | $(VENV)/created
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/package

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build demo runs/demo *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
