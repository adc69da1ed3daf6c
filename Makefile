# make train [ARGS="--density 0.02"]   trains the default network (see README.md)
# make test  [ARGS="-k linear"]        lint, types and tests
# make bench [ARGS="layers --help"]    measurements (see README.md)
# make gpu   [ARGS="--sections layers"]  all there is to find out on a machine with a GPU, in 9 minutes (docs/gpu.md)
# make sanitize [ARGS="-k linear"]     all tests on an extension built with ASan and UBSan, in build/sanitize
#
# All but gpu make .venv with the pinned requirements.txt and build the extension into the tree first.
# PYTHON=python3 VENV=none uses that Python and its torch as they are and installs nothing.
# PIP_ARGS passes options to pip: --index-url of a CPU-only build of torch, for one.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PIP_ARGS ?=

ifeq ($(VENV),none)
RUN := $(PYTHON)
INSTALLED :=
else
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
# Test processes side by side, each of one thread but where a test asks for more. JOBS= for none.
JOBS ?= 2
endif
PARALLEL := $(if $(JOBS),-n $(JOBS) --dist loadfile --no-loadscope-reorder)

EXTENSION := sparsekern/_C$(shell $(PYTHON) -c "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))")
SOURCES := setup.py $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h')

.PHONY: train test bench gpu sanitize lint build clean

train: build
	@$(RUN) .ci/check_machine.py train
	$(RUN) -m sparsekern train --twin $(ARGS)

test: lint
	@$(RUN) .ci/check_machine.py test
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(PARALLEL) $(ARGS)

bench: build
	$(RUN) -m benchmarks $(or $(ARGS),--help)

# With the Python and the torch that are there: the pinned torch is for the CPU, and there may be no network.
gpu:
	@$(PYTHON) .ci/gpu.py $(ARGS)

sanitize: $(INSTALLED)
	@$(RUN) .ci/check_machine.py build
	@$(RUN) .ci/check_machine.py test
	.ci/sanitize.sh $(RUN) $(ARGS)

# A machine's own Python may lack the linters, which are not needed to use or to test the package there.
lint: build
ifneq ($(VENV),none)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
endif

build: $(EXTENSION)

$(EXTENSION): $(SOURCES) | $(INSTALLED)
	@$(RUN) .ci/check_machine.py build
	$(RUN) setup.py -q build_ext --inplace
	@touch $@

ifneq ($(VENV),none)
$(INSTALLED): requirements.txt
	@$(PYTHON) .ci/check_machine.py venv
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet $(PIP_ARGS) -r requirements.txt
	@touch $@
endif

clean:
	rm -rf .venv build dist *.egg-info sparsekern/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
