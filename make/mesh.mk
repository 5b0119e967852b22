# The figures of docs/benchmarks/mesh.md: simulated, so they are the same on every machine; only the waiting differs.

MESH_JOBS ?= $(shell nproc 2>/dev/null || echo 1)

.PHONY: bench-mesh bench-mesh-hour bench-mesh-scale

bench-mesh: setup ## Crash detection and the Lifeguard experiment, simulated (ten minutes of CPU)
	$(BIN)/p2pkv sim detection --nodes 32 --seed 1 --runs 40 -o json
	$(BIN)/p2pkv sim detection --nodes 100 --seed 1 --runs 20 -o json
	$(BIN)/p2pkv sim lifeguard --nodes 32 --seed 1 --jobs $(MESH_JOBS) -o json

	$(MAKE) --no-print-directory bench-mesh-scale

bench-mesh-scale: setup ## Rest, partition, join storm and chitchat's figures, simulated (half an hour of CPU)
	for nodes in 128 200 500 1000; do $(BIN)/p2pkv sim rest --nodes $$nodes --seed 1 -o json || exit 1; done
	for seed in 1 2 3; do $(BIN)/p2pkv sim heal --nodes 200 --seed $$seed -o json || exit 1; done
	$(BIN)/p2pkv sim heal --nodes 200 --seed 1 --apart 1800 -o json
	$(BIN)/p2pkv sim heal --nodes 200 --seed 1 --apart 130 --reap 40 -o json
	for nodes in 2 3 10; do $(BIN)/p2pkv sim heal --nodes $$nodes --seed 1 -o json || exit 1; done
	$(BIN)/p2pkv sim storm --nodes 500 --seed 1 -o json
	$(BIN)/p2pkv sim storm --nodes 500 --seed 1 --loss 0.1 -o json
	$(BIN)/p2pkv sim anchors --runs 10 -o json

bench-mesh-hour: setup ## An hour of 200 nodes at 5 % loss, simulated (some minutes)
	$(BIN)/p2pkv sim members --nodes 200 --seed 1 --loss 0.05 --duration 3600 -o json
