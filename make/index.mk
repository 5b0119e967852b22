# Lookups, summaries and the ring, measured on this machine; docs/benchmarks/index.md says what the figures mean.

.PHONY: bench-index bench-summaries

bench-index: setup ## Measure lookups, summaries and the ring
	$(BIN)/p2pkv bench lookup --peers 100
	$(BIN)/p2pkv bench lookup --peers 1000
	$(BIN)/p2pkv bench filters
	$(BIN)/p2pkv bench ring
	$(BIN)/p2pkv bench deltas
	$(BIN)/p2pkv bench deltas --keys 100000
	for blocks in 64 256 1024; do $(BIN)/p2pkv bench pair --chain $$blocks || exit 1; done
	$(BIN)/p2pkv bench directory --nodes 100
	$(BIN)/p2pkv bench directory --nodes 1000 --seconds 10

# Simulated, so these figures are the same on every machine; TRACE is a file of one's own.
bench-summaries: setup ## Simulate what summaries find and cost (four minutes of CPU)
	$(BIN)/p2pkv sim summaries --nodes 32 --seed 1 -o json
	$(BIN)/p2pkv sim summaries --nodes 100 --seed 1 --rate 2.7 --blocks 2048 --period 2 --joins 10 -o json
	$(if $(TRACE),$(BIN)/p2pkv sim summaries --nodes 16 --seed 1 --blocks 4096 --joins 0 --period 2 --duration 1200 --trace $(TRACE) -o json)
