# Blocks moved between two processes, beside what plain copies and sockets reach; docs/benchmarks/transfer.md has the figures.

.PHONY: bench-transfer

bench-transfer: setup ## Measure shared memory and TCP beside hand-made limits (half a minute)
	$(BIN)/p2pkv bench transfer
