# Each target makes .venv for itself: Python 3.11 or newer and make are all that must be there.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# Where Python may keep no compiled modules, each of the many processes of the tests compiles PyTorch anew.
unexport PYTHONDONTWRITEBYTECODE

# What `make demo` trains with, and where the run goes.
DIGITS ?= --epochs 30
DEMO ?= runs/demo

# `make bench CIFAR10=train.tar` also measures the input pipeline: a tar of class folders of 32×32 pictures.
CIFAR10 ?=

# What the tests of the pages need: Debian's Chromium where apt can get it; without any browser they are skipped.
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable
define GET_BROWSER
for name in $(BROWSERS); do command -v $$name > /dev/null && exit 0; done
if command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ]; then
	(apt-get -o Acquire::http::Timeout=20 update && apt-get install -y --no-install-recommends chromium) \
		> /dev/null 2>&1 && exit 0
fi
echo "no Chromium could be had: the tests of the pages are skipped"
endef
export GET_BROWSER

.PHONY: help demo test docs lint format bench clean browser

help:  ## this list
	@echo "make TARGET, where TARGET is"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED)  ## train on real handwritten digits, measure, and ask about some: 3 to 5 minutes on 2 cores
	@rm -rf $(DEMO)
	$(BIN)/vitreous train digits $(DIGITS) --out $(DEMO)
	$(BIN)/vitreous eval $(DEMO) digits
	@$(BIN)/python -c "$$HELD_OUT_DIGITS" $(DEMO)
	$(BIN)/vitreous predict $(DEMO) $(DEMO)/pictures
	@echo
	@echo "how it learned:             $(DEMO)/curves.png"
	@echo "what it takes for what:     $(DEMO)/confusion.png"
	@echo "its surest mistakes:        $(DEMO)/worst.png"
	@echo "the pictures it was asked:  $(DEMO)/pictures/ (each is named after the digit that it shows)"

# Writes the first held-out picture of each digit, as <digit>.png.
define HELD_OUT_DIGITS
import csv, pathlib, sys
from PIL import Image
from vitreous.data.sources import open_source
run = pathlib.Path(sys.argv[1])
source = open_source("digits")
held_out = {row["path"] for row in csv.DictReader(open(run / "split.csv")) if row["split"] == "validation"}
first = {}
for i, name in enumerate(source.names):
    if name in held_out:
        first.setdefault(source.columns["class"][i], i)
(run / "pictures").mkdir()
for digit, i in first.items():
    Image.fromarray(source.read(i)).save(run / "pictures" / f"{digit}.png")
endef
export HELD_OUT_DIGITS

test: browser $(INSTALLED)  ## the tests, in two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

docs: browser $(INSTALLED)  ## the documentation, into docs/_build/html, and looked at in a browser
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -q -W --keep-going -j 2 docs docs/_build/html
	VITREOUS_DOCS=docs/_build/html $(BIN)/pytest tests/test_docs.py

browser:
	@sh -c "$$GET_BROWSER"

lint: $(INSTALLED)  ## ruff, pyright and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

format: $(INSTALLED)  ## format the code, and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## the benchmarks that need no more than this repository; CIFAR10=train.tar for all
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/reproducible.py digits
	$(BIN)/python benchmarks/reliability.py kills --count 4
	$(BIN)/python benchmarks/from_scratch.py digits
	$(BIN)/python benchmarks/train_speed.py
	$(if $(CIFAR10),$(BIN)/python benchmarks/input_pipeline.py $(CIFAR10))

clean:  ## remove .venv and what the tools leave; runs/ stays
	rm -rf .venv build dist docs/_build *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Vitreous needs Python 3.11 or newer; \`$(PYTHON)\` is $$($(PYTHON) --version 2>&1 || true)."; \
		echo "Name another one, such as: make PYTHON=python3.12 TARGET"; exit 1; } >&2
	$(PYTHON) -m venv .venv
	@# The pip that comes with Python 3.11 takes more than twice as long to find what is to be installed.
	$(BIN)/pip install -qq --disable-pip-version-check --no-compile -c constraints.txt --upgrade pip
	@# -qq: errors alone; setuptools warns at length of every editable installation.
	@# Without --no-compile half of the time goes into compiling 15,000 modules, of which few are ever imported.
	$(BIN)/pip install -qq --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@touch $@
