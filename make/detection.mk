# Real daemons on loopback beside kinship, another implementation of SWIM with Lifeguard; see docs/benchmarks/mesh.md.
#
# kinship lives in .venv-bench and only its own members run there: it is measured, and nothing of ours depends on it.

BENCH_VENV := .venv-bench
DETECTION_NODES ?= 20
DETECTION_ROUNDS ?= 20

.PHONY: bench-env bench-detection

bench-env: $(BENCH_VENV)/.p2pkv-setup ## Make .venv-bench with what we are measured beside (done once)

$(BENCH_VENV)/.p2pkv-setup: requirements/bench.txt | $(STAMP)
	@test -x $(BENCH_VENV)/bin/python || $(BIN)/python -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --require-hashes --only-binary :all: --requirement requirements/bench.txt
	@touch $@

bench-detection: setup bench-env ## Time how soon a SIGKILL is noticed, beside kinship (about six minutes)
	$(BIN)/p2pkv bench detection --nodes $(DETECTION_NODES) --rounds $(DETECTION_ROUNDS) --kinship $(BENCH_VENV)/bin/python -o json
