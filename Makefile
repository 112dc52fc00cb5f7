# Two commands need nothing but Python 3.11+, make and a compiler: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKERS ?= 2

.PHONY: demo test test-slow check bench bench-training bench-time zoo zoo-package clean

demo: $(VENV)/.installed
	$(BIN)/pellucid demo

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not gpu"

# Minutes to hours: the published networks, the training runs on MNIST.
test-slow: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "slow and not gpu"

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

# Hours: every classifier of the zoo, trained and measured anew; give it again to go on. PELLUCID_DATA must hold mnist.
zoo: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pellucid zoo --folder zoo --build --fresh --claims

# What `make zoo` made, into the package: every card, and the weights of first seeds where they are less than a MiB.
# The wheel leaves out some of these (pyproject.toml): they save a checkout from training them again.
PACKAGE := $(CURDIR)/src/pellucid/pretrained_models
zoo-package:
	cd zoo && for card in $$(find . -name card.json); do to="$(PACKAGE)/$${card%/*}" && cd "$${card%/*}" && \
	    install -D -m 644 -t "$$to" card.json && \
	    case "$$to" in *@*) ;; *) find . -maxdepth 1 -name model.safetensors -size -1024k \
	    -exec install -m 644 {} recipe.json seconds.json "$$to" \; ;; esac && cd "$(CURDIR)/zoo"; done
	test ! -f zoo/transfer.json || install -m 644 zoo/transfer.json "$(PACKAGE)"

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/attacks.py

bench-training: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/training.py

bench-time: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/time_to_robustness.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Pellucid needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable .
	touch $@

# torchattacks declares torchvision and captum an old NumPy; neither needs what it declares.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev,crosscheck]'
	$(PIP) --no-deps torchattacks captum
	touch $@

clean:
	rm -rf $(VENV) runs build dist
