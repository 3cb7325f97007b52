# Two commands for a fresh clone: `make demo` and `make test`. Both need only python3 (3.11 or later) with venv and pip.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
EXAMPLES := engine/examples

.PHONY: demo test env clean

demo: $(READY)
	$(VENV)/bin/multitalk generate \
	    --image $(EXAMPLES)/two.png --audio $(EXAMPLES)/left.flac --audio $(EXAMPLES)/right.flac --audio-type add \
	    --prompt "Two people talk in a park in the morning, smiling." --seed 7 \
	    --output demo/two.mp4 sink.overwrite=true model=tiny sampler=turbo

test: $(READY)
	$(VENV)/bin/python -m nox --sessions tests types lint wheel

env: $(READY)

# Made anew whenever what is installed may have changed: entry points stand in setup.cfg.
$(READY): setup.cfg pyproject.toml constraints.txt
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@# A wheel that was built here before left its entry points behind, and Python would find those first.
	@rm -rf *.egg-info
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .nox build dist *.egg-info demo
