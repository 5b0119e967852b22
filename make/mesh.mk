# The figures of docs/benchmarks/mesh.md: simulated, so they are the same on every machine; only the waiting differs.

MESH_JOBS ?= $(shell nproc 2>/dev/null || echo 1)

.PHONY: bench-mesh bench-mesh-hour

bench-mesh: setup ## Crash detection and the Lifeguard experiment, simulated (ten minutes of CPU)
	$(BIN)/p2pkv sim detection --nodes 32 --seed 1 --runs 40 -o json
	$(BIN)/p2pkv sim detection --nodes 100 --seed 1 --runs 20 -o json
	$(BIN)/p2pkv sim lifeguard --nodes 32 --seed 1 --jobs $(MESH_JOBS) -o json

bench-mesh-hour: setup ## An hour of 200 nodes at 5 % loss, simulated (some minutes)
	$(BIN)/p2pkv sim members --nodes 200 --seed 1 --loss 0.05 --duration 3600 -o json
