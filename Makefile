# `make` alone lists what there is.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready
export HF_HUB_OFFLINE := 1

.PHONY: help demo test test-slow test-lowest test-space page weights fuzz chaos audit lint style bench cards schema docs

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# Installs the pinned versions once, and again when they change: the package, and for development its tools too.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing iltm-anomaly and what it needs into $(VENV): some minutes, the most of it for torch"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable .
	touch $@

$(READY): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)  ## train and test on a generated contaminated set; results and pictures in demo/
	$(BIN)/iltm-anomaly demo --output demo

# Two at a time; tests of one file share what they have trained, and stay together.
test: $(READY)  ## the tests, under 12 minutes on 2 cores
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile

test-slow: $(READY)  ## all tests, long ones too
	$(BIN)/python -m pytest

# What rests on other packages most: loading, saving, transformers' pipeline, data sets and streams, training.
LOWEST := .venv-lowest
$(LOWEST)/.ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable . 'pytest>=8'
	touch $@

test-lowest: $(LOWEST)/.ready  ## a part of the tests with the oldest packages that are allowed
	$(LOWEST)/bin/python -m pytest tests/test_pipeline.py tests/hub/test_task.py tests/data/test_hub.py \
		tests/data/test_streaming.py tests/training/test_features.py tests/training/test_stage1.py

# Gradio wants an older Pillow than the pinned one, and another Pillow resizes a little differently: so the Space has an
# environment of its own, on top of the other.
SPACE := .venv-space
$(SPACE)/.ready: $(READY)
	$(PYTHON) -m venv $(SPACE)
	base=$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])'); \
	echo "import site; site.addsitedir('$$base')" > $$($(SPACE)/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth
	sed 's/^pillow==.*/pillow==12.3.0/' constraints.txt > $(SPACE)/constraints.txt
	$(SPACE)/bin/python -m pip install --quiet --constraint $(SPACE)/constraints.txt 'gradio>=6.31,<7'
	touch $@

test-space: $(SPACE)/.ready  ## the Space in a headless Chromium (apt-get install chromium chromium-driver)
	$(SPACE)/bin/python -m pytest tests/test_space.py -rs

page: $(SPACE)/.ready  ## the Space on this machine, with MODEL=demo/run, runs/mine, ...; by default its own model
	$(SPACE)/bin/python space/app.py $(MODEL)

weights: $(INSTALLED)  ## the Space's own model and examples, from generated images: space/model, some two minutes
	$(BIN)/python scripts/space_model.py

fuzz: $(READY)  ## spoiled files and odd words through every door for SECONDS=600; prints the seed of every failure
	$(BIN)/python tests/fuzz.py --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

chaos: $(READY)  ## kills, full disks and other faults during train, detect, benchmark and push; tens of minutes
	$(BIN)/python tests/chaos.py $(if $(SEED),--seed $(SEED))

audit:  ## known weaknesses of the pinned versions, by pip-audit; needs a network
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit
	.venv-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(READY)  ## format and repair what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## side-by-side benchmarks against other libraries, about 20 minutes on one core; results in runs/bench/
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m pip install --quiet --no-deps 'monai>=1.5' 'vector-quantize-pytorch>=1.32'  # its dependencies would bring another torch
	$(BIN)/python scripts/benchmarks/run.py --output runs/bench/benchmarks.jsonl
	$(BIN)/python scripts/benchmarks/bench_metrics.py --output runs/bench/bench_metrics.json

cards: $(READY)  ## model_cards/ from the results in docs/results/
	$(BIN)/python scripts/model_cards.py

schema: $(READY)  ## the schema of recipes, for editors
	$(BIN)/python -c 'from pathlib import Path; import iltm_anomaly.recipes.recipe as r; Path(r.__file__).with_name("recipe.schema.json").write_text(r.json_schema())'

# The site needs packages that nothing else does: installed once, and again when they change.
$(VENV)/.docs-ready: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: $(VENV)/.docs-ready  ## the documentation as a site in site/, with the API from the docstrings
	$(BIN)/python scripts/architecture.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo site/index.html
