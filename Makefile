# Everything on a fresh machine: `make demo` and `make test`. Both create what they need in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := build-demo

.PHONY: demo check test test-native lint vendor clean

# Where `make test` has been run, everything is there. Else a demo installs quantkit alone: no PyTorch,
# no transformers, no Ray.
demo: $(if $(wildcard $(VENV)/.ready),$(VENV)/.ready,$(VENV)/.installed)
	$(BIN)/quantkit build tests/checkpoints/tiny-mixtral --quant ladder -o $(DEMO)/tiny-mixtral
	$(BIN)/quantkit build tests/checkpoints/tiny-mistral --quant ladder -o $(DEMO)/tiny-mistral
	$(BIN)/quantkit build $(DEMO)/tiny-mistral/*-F16.gguf --quant q4_k_s,iq4_xs -o $(DEMO)/from-gguf
	@echo
	@echo "How close are they to the original? Try:"
	@echo "  $(BIN)/quantkit compare $(DEMO)/tiny-mixtral"

# Two processes, whose idle OpenMP threads must not spin for each other's cores. A file's tests share
# what they build, so they stay in one process. Files of few tests, which would be left for the end,
# are among the longest.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# While working: what tells most in the least time. Then the tests of what was changed.
FAST := tests/core tests/planning tests/families tests/test_time.py tests/api/test_flow.py

check: lint
	$(PYTEST) $(FAST)

test: lint $(VENV)/.converter
	$(PYTEST)

# Against llama.cpp's own tools, which this builds first (about 8 minutes, once).
test-native: vendor $(VENV)/.converter
	$(PYTEST) -m native

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

vendor: $(VENV)/.ready
	$(BIN)/python vendor/build.py

# llama-cpp-python comes as source: its build takes 6 to 10 minutes on two cores, once.
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt --editable

$(VENV)/.ready: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) '.[dev]'
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) .
	touch $@

$(BIN)/pip:
	$(PYTHON) -c 'import sys; sys.exit("quantkit needs Python 3.11 or later: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# What quantkit fetches when a checkpoint first needs it, into the user's cache: once, before tests
# that run beside each other need it.
$(VENV)/.converter: $(VENV)/.ready vendor/manifest.toml profiles/converter/packages.txt
	$(BIN)/python -c 'from quantkit.checkpoint.converter.provision import find_converter; find_converter(say=print)'
	touch $@

clean:
	rm -rf $(DEMO) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
