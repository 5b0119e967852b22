# Blocks moved between two processes, beside what plain copies and sockets reach; docs/benchmarks/transfer.md has the figures.

.PHONY: bench-transfer

bench-transfer: setup ## Measure every transport and protection beside hand-made limits (a minute)
	$(BIN)/p2pkv bench transfer
