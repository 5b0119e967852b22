# The figures of docs/benchmarks/mesh.md: simulated, so they are the same on every machine; only the waiting differs.

MESH_JOBS ?= $(shell nproc 2>/dev/null || echo 1)

.PHONY: bench-mesh bench-mesh-hour bench-mesh-loss bench-mesh-thousand bench-mesh-scale

bench-mesh: setup ## All figures of the mesh, and of what it finds: simulated, then on this machine (hours)
	$(BIN)/p2pkv sim detection --nodes 32 --seed 1 --runs 200 --jobs $(MESH_JOBS) -o json
	$(BIN)/p2pkv sim detection --nodes 100 --seed 1 --runs 100 --jobs $(MESH_JOBS) -o json
	$(BIN)/p2pkv sim lifeguard --nodes 32 --seed 1 --jobs $(MESH_JOBS) --plot $(SIM_PLOTS)/lifeguard.svg -o json
	$(BIN)/p2pkv sim lifeguard --experiment threshold --seed 1 --jobs $(MESH_JOBS) -o json
	$(BIN)/p2pkv sim freeze --nodes 64 --seed 1 -o json
	$(MAKE) --no-print-directory bench-mesh-loss bench-mesh-thousand bench-mesh-hour bench-summaries bench-index
	$(MAKE) --no-print-directory bench-detection bench-mesh-scale  # last, for it ends with limits that may be missed

bench-mesh-loss: setup ## Lost datagrams at 200 nodes, SWIM, Lifeguard and observers, simulated (half an hour of CPU)
	$(BIN)/p2pkv sim loss --nodes 200 --seed 1 --egress 0.8 --duration 300 --jobs $(MESH_JOBS) -o json
	$(BIN)/p2pkv sim loss --nodes 200 --seed 1 --loss 0.2 --duration 300 --jobs $(MESH_JOBS) -o json

bench-mesh-thousand: setup ## 50 crashes among 1,000 nodes, nothing lost and 10 %, simulated (some minutes)
	$(BIN)/p2pkv sim crashes --nodes 1000 --crashes 50 --seed 1 -o json
	$(BIN)/p2pkv sim crashes --nodes 1000 --crashes 50 --seed 1 --loss 0.1 -o json

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
