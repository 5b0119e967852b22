# The simulator's long runs. Figures are the same on every machine with the same minor version of Python; times are not.

SIM_SEEDS ?= 1000
SIM_NODES ?= 16
SIM_JOBS ?= $(shell nproc 2>/dev/null || echo 1)

.PHONY: sim sim-agents sim-pace sim-plots

sim: setup ## Every scenario with 1,000 seeds; each failing seed prints the command that replays it
	$(BIN)/p2pkv sim run all --nodes $(SIM_NODES) --seed 1 --runs $(SIM_SEEDS) --jobs $(SIM_JOBS)

sim-agents: setup ## 100 real agents in one trio run, at rest for ten simulated minutes
	$(BIN)/python -m p2pkv.testing.agents --agents 100 --minutes 10 --seed 1

sim-pace: setup ## 1,000 nodes at rest for ten simulated minutes
	$(BIN)/p2pkv sim pace --nodes 1000 --minutes 10 --seed 1 -o json

SIM_PLOTS := docs/benchmarks/plots

sim-plots: setup ## Draw the plots of the documentation anew (a quarter of an hour of CPU)
	$(BIN)/p2pkv sim members --nodes 50 --seed 1 --plot $(SIM_PLOTS)/members.svg
	$(BIN)/p2pkv sim detection --nodes 32 --seed 1 --runs 40 --plot $(SIM_PLOTS)/detection.svg
	$(BIN)/p2pkv sim lifeguard --nodes 32 --seed 1 --jobs $(SIM_JOBS) --plot $(SIM_PLOTS)/lifeguard.svg
	$(BIN)/p2pkv sim churn --nodes 32 --seed 1 --plot $(SIM_PLOTS)/churn.svg
	$(BIN)/p2pkv sim partition --nodes 32 --seed 1 --plot $(SIM_PLOTS)/partition.svg
