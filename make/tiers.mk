# The disk tier beside the disk's own limits and beside what people would take instead; docs/benchmarks/tiers.md has the figures.
#
# The others live in .venv-bench-tiers and run in processes of their own: nothing of ours imports them.

TIERS_VENV := .venv-bench-tiers
TIERS_ROUNDS ?= 9
TIERS_FOLDER ?= .cache

.PHONY: bench-tiers bench-tiers-env

bench-tiers-env: $(TIERS_VENV)/.p2pkv-setup ## Make .venv-bench-tiers with what the disk tier is measured beside (done once)

$(TIERS_VENV)/.p2pkv-setup: requirements/bench-tiers.txt | $(STAMP)
	@test -x $(TIERS_VENV)/bin/python || $(BIN)/python -m venv $(TIERS_VENV)
	$(TIERS_VENV)/bin/python -m pip install --quiet --no-deps --only-binary :all: --requirement requirements/bench-tiers.txt
	@touch $@

bench-tiers: setup bench-tiers-env ## Measure the disk tier beside fio, a bare loop, lmdb and others; 11 GB of room, some minutes
	@command -v fio >/dev/null || echo "fio is not installed: a bare loop is the only limit (apt-get install fio)" >&2
	$(BIN)/p2pkv bench tiers --folder $(TIERS_FOLDER) --python $(TIERS_VENV)/bin/python --rounds $(TIERS_ROUNDS) -o json
