# `make tprl` runs the main job, `make test` the tests; each sets everything up first.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: tprl test lint format docs throughput clean

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch -c constraints.txt
	$(BIN)/pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

tprl: $(VENV)/.installed
	$(BIN)/python benchmarks/run_tprl.py $(ARGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# The packages are typed as they are installed: agents, backbones and benchmarks inside vmr_env.
	rm -rf build/typed
	$(BIN)/pip install --quiet --no-deps --target build/typed .
	cd build/typed && $(abspath $(BIN))/mypy --config-file $(CURDIR)/setup.cfg -p vmr_env

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

throughput: $(VENV)/.installed
	$(BIN)/python benchmarks/speed/throughput.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info runs
