# Beside the systems that people would pick, on one machine in one run; docs/benchmarks/peers.md has the figures.
#
# They live in .venv-bench-peers and run in processes of their own: nothing of ours imports them. torch, which LMCache
# needs, is .venv's: a path file puts .venv behind the environment's own packages.

PEERS_VENV := .venv-bench-peers
PEERS_PROGRAMS := gcc iperf3 redis-server
PEERS_LIBRARIES := libcurl.so.4 libibverbs.so.1 libnuma.so.1
PEERS_DEBIAN := gcc iperf3 redis-server libcurl4 libibverbs1 libnuma1
PEERS_ROUNDS ?= 9

.PHONY: bench-peers bench-peers-env bench-peers-packages

bench-peers-env: $(PEERS_VENV)/.p2pkv-setup ## Make .venv-bench-peers with the systems we are measured beside (done once)
	@for program in $(PEERS_PROGRAMS); do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	for library in $(PEERS_LIBRARIES); do PATH=$$PATH:/sbin:/usr/sbin ldconfig -p | grep -q $$library || missing="$$missing $$library"; done; \
	if [ -n "$$missing" ]; then echo "make bench-peers needs what is not installed:$$missing" >&2; \
	echo "hint: on Debian and Ubuntu, apt-get install --no-install-recommends $(PEERS_DEBIAN)" >&2; exit 1; fi

$(PEERS_VENV)/.p2pkv-setup: requirements/bench-peers.txt | $(STAMP)
	@test -x $(PEERS_VENV)/bin/python || $(BIN)/python -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/python -m pip install --quiet --no-deps --only-binary :all: --requirement requirements/bench-peers.txt
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' > "$$($(PEERS_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz-behind.pth"
	@touch $@

bench-peers-packages: $(PEERS_VENV)/.p2pkv-setup

bench-peers: setup bench-peers-env ## Measure blocks, lookups and rest beside Mooncake, LMCache, Redis and NIXL (some minutes)
	$(BIN)/p2pkv bench peers --python $(PEERS_VENV)/bin/python --rounds $(PEERS_ROUNDS) -o json
