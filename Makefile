# make demo      does mixing help without augmentation? 24 small runs and a verdict, in minutes
# make test      lint, types and tests
# make docs      the documentation, in site/
# make tutorial  execute the tutorial's notebook and store its outputs
# make catalog   rewrite what is generated from the code: the catalog of options (see
#                src/unmix/config/catalog.py), and the tables in the README and in docs/
# make reliability  kill runs at random moments and compare what they leave; train 3,000 steps and
#                   watch memory, handles, processes and checkpoints
# make fuzz      change files at random, for minutes, and see that what reads them ends well or in a
#                line; MINUTES=10 of processor time for each of two jobs
# All install what they need in .venv; PYTHON chooses the interpreter (3.10 to 3.13).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test docs tutorial install clean catalog reliability fuzz

demo: $(VENV)/.installed
	$(BIN)/unmix demo

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal

install: $(VENV)/.installed

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[dev,docs]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist src/*.egg-info

catalog: $(VENV)/.installed
	$(BIN)/python -m unmix.catalog
	$(BIN)/python docs/tools/tables.py

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/tools/assemble.py
	$(BIN)/zensical build --strict

tutorial: $(VENV)/.installed-dev
	$(BIN)/python docs/tools/notebook.py

reliability: $(VENV)/.installed-dev
	$(BIN)/python tests/jobs/kills.py --out build/kills.json
	$(BIN)/python tests/jobs/soak.py --out build/soak.json

MINUTES ?= 10
fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet atheris
	nice -n 19 $(BIN)/python benchmarks/fuzz_coverage.py --minutes $(MINUTES) --out build/fuzz
	nice -n 19 $(BIN)/python benchmarks/fuzz.py --minutes $(MINUTES)
