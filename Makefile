# make demo     the whole pipeline on the miniature world; continues where it stopped, FRESH=1 starts over
# make demo-preferences   DPO on stored and on drawn pairs, from the demo's policy, with scores
# make test     the tests that fit into ten minutes on two cores; make test-slow the others
# make lint     style, types, and the direction of imports
# PYTHON=python3.12 chooses another Python, 3.11 to 3.13; the environment is then built anew.
PYTHON ?= python3.11
VENV := .venv
STAMP := $(VENV)/installed-with-$(notdir $(PYTHON))
RUN := $(VENV)/bin/python

.PHONY: demo demo-preferences test test-slow lint install

demo: install
	$(RUN) -m simplear_rl.demo fresh=$(or $(FRESH),false)

demo-preferences: install
	for stage in dpo dpo_online; do \
		$(RUN) -m simplear_rl.dpo --config configs/shapes/$$stage.yaml root=runs/demo && \
		$(RUN) -m simplear_rl.evaluate root=runs/demo policy=runs/demo/$$stage/final \
			output=runs/demo/evaluation/$$stage || exit 1; \
	done

test: install
	$(RUN) -m pytest -m "not slow" --numprocesses 2 --dist loadfile

test-slow: install
	$(RUN) -m pytest -m slow

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

install: $(STAMP)

# The stamp comes last, and without it everything is built anew: a half-finished install is never used.
# torch and torchvision come first, from PyTorch's index of CPU builds; where that cannot be reached pip goes on
# and takes what it finds. The lock is complete, so --no-deps: hpsv2's own pins exclude the versions used here.
$(STAMP): requirements-cpu.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { \
		echo "$(PYTHON): not found here, or not Python 3.11, 3.12 or 3.13: install one of these, or name one that is" \
			"there, for example make test PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --no-deps --retries 0 --extra-index-url https://download.pytorch.org/whl/cpu \
		$$(grep -E '^(torch|torchvision)==' requirements-cpu.lock)
	$(RUN) -m pip install --quiet --no-deps --requirement requirements-cpu.lock
	$(RUN) -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
