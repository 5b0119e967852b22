# What stays where: recorded traces through the cores that decide it. TRACES is a folder with files of their public names;
# docs/benchmarks/cache.md says where they are from. Figures are the same on every machine.

TRACES ?=

.PHONY: bench-cache bench-cache-full

bench-cache: setup ## Eviction policies, then ways to share, on recorded traces, TRACES=folder (a quarter of an hour)
	$(BIN)/p2pkv sim cache $(TRACES) -o json
	$(BIN)/p2pkv sim cache $(TRACES) --mesh -o json

bench-cache-full: setup ## The same with every trace and capacity (hours)
	$(BIN)/p2pkv sim cache $(TRACES) --full --plot $(SIM_PLOTS)/cache.svg -o json
	$(BIN)/p2pkv sim cache $(TRACES) --mesh --full --plot $(SIM_PLOTS)/shared.svg -o json
