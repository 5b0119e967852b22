# The simulator's long runs. Figures are the same on every machine with the same minor version of Python; times are not.

SIM_SEEDS ?= 1000
SIM_NODES ?= 16
SIM_JOBS ?= $(shell nproc 2>/dev/null || echo 1)

.PHONY: sim sim-agents

sim: setup ## Every scenario with 1,000 seeds; each failing seed prints the command that replays it
	$(BIN)/p2pkv sim run all --nodes $(SIM_NODES) --seed 1 --runs $(SIM_SEEDS) --jobs $(SIM_JOBS)

sim-agents: setup ## 100 real agents in one trio run, at rest for ten simulated minutes
	$(BIN)/python -m p2pkv.testing.agents --agents 100 --minutes 10 --seed 1
