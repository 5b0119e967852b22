# What stays where: recorded traces through the cores that decide it. TRACES is a folder with files of their public names;
# docs/benchmarks/cache.md says where they are from. Figures are the same on every machine.

TRACES ?=

.PHONY: bench-cache bench-cache-full

bench-cache: setup ## Eviction policies on recorded traces, TRACES=folder (minutes)
	$(BIN)/p2pkv sim cache $(TRACES) -o json

bench-cache-full: setup ## The same with every trace and capacity (an hour)
	$(BIN)/p2pkv sim cache $(TRACES) --full --plot $(SIM_PLOTS)/cache.svg -o json
