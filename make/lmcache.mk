# LMCache itself with the mesh as its remote storage, in the environment of make/peers.mk, which has it.

.PHONY: test-lmcache

test-lmcache: setup bench-peers-packages ## LMCache's own storage over two nodes (installs LMCache, a gigabyte)
	$(BIN)/python -m pytest -m lmcache tests/lmcache
