# Blocks moved between two processes, beside what plain copies and sockets reach; docs/benchmarks/transfer.md has the figures.

.PHONY: bench-transfer bench-overload

bench-transfer: setup ## Measure every transport and protection beside hand-made limits (a minute)
	$(BIN)/p2pkv bench transfer

bench-overload: setup ## Measure goodput with ten times as many engines as keep an owner busy (a minute)
	$(BIN)/p2pkv bench overload -o json
