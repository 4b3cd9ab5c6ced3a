# Every target installs what it needs into .venv, from constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ROWS ?= 200
SEED ?= 1
DURATION ?= 20
PORT ?= 8080
export DEMO_ROWS ?= 4000

.DEFAULT_GOAL := help
.PHONY: help install demo test chaos parity bench bench-gpu bench-ner-memory bench-version-switch bench-sync bench-outbox \
	bench-reading bench-store bench-index bench-fresh bench-search bench-drift bench-monitor \
	check format airflow psql clean clean-demo

help:  ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-20s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## make .venv with everything in it

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a few minutes the first time"
	@if [ -t 1 ]; then quiet=; else quiet=--quiet; fi; \
	$(BIN)/python -m pip install $$quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[airflow,demo,dev]'
	@touch $@

demo: $(INSTALLED)  ## the main job on real tweets, through Airflow (DEMO_ROWS=all for all)
	@$(BIN)/embedline demo

test: $(INSTALLED)  ## lint, types and tests
	@$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(ARGS)

chaos: $(INSTALLED)  ## storms, then a verdict (SEED=1-20 DURATION=20 MUTANT="no fence")
	@$(BIN)/python -m tests.chaos --seeds $(SEED) --seconds $(DURATION) $(if $(MUTANT),--mutant "$(MUTANT)" --rounds 30)

parity: $(INSTALLED)  ## every recipe beside a plain forward of its reference (ROWS=200)
	@$(BIN)/python -m benchmarks.parity --rows $(ROWS)

bench: $(INSTALLED)  ## texts to vectors on the processor, beside sentence-transformers
	@$(BIN)/python -m benchmarks.engine_cpu

bench-gpu: $(INSTALLED)  ## texts, images and rows to vectors on a card; GPUS=2: by 1 and 2 of them
ifneq ($(filter-out 1,$(GPUS)),)
	@$(BIN)/python -m benchmarks.scaling --processes $(GPUS)
else
	@$(BIN)/python -m benchmarks.engine_gpu
	@$(BIN)/python -m benchmarks.images --images 12000 --dtype float16 --lanes 3
	@$(BIN)/python -m benchmarks.rows --size bert-base --rows 400000
endif

bench-ner-memory: $(INSTALLED)  ## memory of an NER job, 1,000 to 100,000 sentences
	@$(BIN)/python -m benchmarks.ner_memory

bench-version-switch: $(INSTALLED)  ## searches while versions are promoted and rolled back
	@$(BIN)/python -m benchmarks.version_switch

bench-sync: $(INSTALLED)  ## cost of a run over 1,000,000 rows, unchanged and 1 % changed
	@$(BIN)/python -m benchmarks.sync_cost

bench-reading: $(INSTALLED)  ## vectors back to numpy, Arrow and pandas, beside other ways
	@$(BIN)/python -m benchmarks.reading

bench-search: $(INSTALLED)  ## searches through the functions, against the same by hand
	@$(BIN)/python -m benchmarks.search

bench-outbox: $(INSTALLED)  ## what the outbox's triggers cost the application
	@$(BIN)/python -m benchmarks.outbox_overhead

bench-store: $(INSTALLED)  ## rows into the store, against every other way
	@$(BIN)/python -m benchmarks.store_write

bench-index: $(INSTALLED)  ## indexes of 38,158 to 300,000 vectors, built and churned
	@$(BIN)/python -m benchmarks.index_build

bench-drift: $(INSTALLED)  ## alarms of the drift statistics with and without drift
	@$(BIN)/python -m benchmarks.drift

bench-monitor: $(INSTALLED)  ## a day of monitoring, stores of 100,000 to 1,000,000 vectors
	@$(BIN)/python -m benchmarks.monitor_cost

bench-fresh: $(INSTALLED)  ## a large re-embed, in place and into a fresh table
	@$(BIN)/python -m benchmarks.fresh_table

check: $(INSTALLED)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

airflow: $(INSTALLED)  ## serve the Airflow UI with these DAGs until Ctrl-C (PORT=8080)
	@$(BIN)/embedline airflow --port $(PORT)

psql: $(INSTALLED)  ## open the store in psql
	@$(BIN)/embedline psql

clean-demo: $(INSTALLED)  ## remove .embedline: databases, models, Airflow's files (asks)
	@$(BIN)/embedline demo --reset

clean: clean-demo  ## remove the environment, too
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
