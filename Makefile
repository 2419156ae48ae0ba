PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
WORKERS ?= 3

.PHONY: help install demo test broad check prove verify bench bench-gspmd pages clean

help:      ## what there is to make
	@sed -n 's/^\([a-z-]*\): .*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

install: $(STAMP) ## .venv with shardlang and the tested versions of everything it needs

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[hf,data,tensorboard,png,dev]"
	@touch $@

demo: install ## train the Llama example on 4 processes and compare every step with one process
	$(BIN)/python examples/llama/demo.py

SUITE = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: install ## the tests, in WORKERS processes
	$(SUITE) -m "not broad"

broad: install ## those that repeat on more models what `make test` shows
	$(SUITE) -m broad

check: install ## ruff, mypy and the import order
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

prove: install ## the brute-force proof of every op rule, on every sample; specs and loading on processes
	$(BIN)/python -m shardlang.rules.prove
	$(BIN)/python -m tests.real tests/real/specs/*.shard
	$(BIN)/python -m tests.hugging.memory
	$(BIN)/python -m tests.checkpoint.kills --times 20
	$(BIN)/python -m tests.pipeline.matrix

verify: install ## shardlang verify on every example
	$(BIN)/python examples/prove.py

bench: install ## compile time and step time
	$(BIN)/python benchmarks/compile_time.py
	$(BIN)/python benchmarks/step_time.py
	for other in fsdp2 ddp megatron plain; do $(BIN)/python benchmarks/train_step.py --against $$other; done
	for other in plain megatron dtensor; do $(BIN)/python benchmarks/compiled_step.py --against $$other; done
	$(BIN)/python benchmarks/overlap.py
	$(BIN)/python benchmarks/random_modes.py
	$(BIN)/python benchmarks/checkpoints.py
	$(BIN)/python benchmarks/bubble.py

JAX := build/jax
GSPMD := build/gspmd

bench-gspmd: install $(JAX)/.installed ## bytes of our programs beside those of XLA's partitioners
	rm -rf $(GSPMD) && mkdir -p $(GSPMD)
	$(BIN)/python benchmarks/gspmd/ours.py $(GSPMD)
	$(JAX)/bin/python benchmarks/gspmd/xla.py $(GSPMD)
	$(BIN)/python benchmarks/gspmd/compare.py $(GSPMD)

$(JAX)/.installed: benchmarks/gspmd/requirements.txt
	$(PYTHON) -m venv $(JAX)
	$(JAX)/bin/python -m pip install --quiet -r benchmarks/gspmd/requirements.txt
	@touch $@

pages: install ## write into the pages what their commands print, and draw their pictures
	$(BIN)/shardlang graph examples/gspmd_ffn/ffn.shard -o docs/images/gspmd_ffn.svg
	$(BIN)/shardlang graph examples/megatron_mlp/mlp.shard -o docs/images/megatron_mlp.svg
	$(BIN)/shardlang graph examples/llama/sp.shard -o docs/images/llama_sp.svg
	$(BIN)/python -m tests.pages

clean:     ## remove what the targets above made
	rm -rf $(VENV) build dist *.egg-info
