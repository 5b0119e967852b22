# Lookups, summaries and the ring, measured on this machine; docs/benchmarks/index.md says what the figures mean.

.PHONY: bench-index

bench-index: setup ## Measure lookups, summaries and the ring
	$(BIN)/p2pkv bench lookup --peers 100
	$(BIN)/p2pkv bench lookup --peers 1000
	$(BIN)/p2pkv bench filters
	$(BIN)/p2pkv bench ring
	$(BIN)/p2pkv bench directory --nodes 100
	$(BIN)/p2pkv bench directory --nodes 1000 --seconds 10
