# Kernels for GPUs: run by Triton's interpreter on a CPU, or measured where there is a GPU; docs/benchmarks/gpu.md.
#
# Triton takes a gigabyte and comes with every engine for GPUs, so it lives in .venv-kernels, which sees .venv's packages.

KERNELS_VENV := .venv-kernels
TRITON := triton==3.9.0

.PHONY: test-kernels test-gpu bench-gpu

$(KERNELS_VENV)/.p2pkv-setup: make/gpu.mk | $(STAMP)
	@test -x $(KERNELS_VENV)/bin/python || $(BIN)/python -m venv $(KERNELS_VENV)
	$(KERNELS_VENV)/bin/python -m pip install --quiet --no-deps --only-binary :all: $(TRITON)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' > "$$($(KERNELS_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz-behind.pth"
	@touch $@

test-kernels: setup $(KERNELS_VENV)/.p2pkv-setup ## The GPU's kernels on this CPU, by Triton's interpreter
	TRITON_INTERPRET=1 $(KERNELS_VENV)/bin/python -m pytest tests/p2pkv/test_gpu_kernels.py

test-gpu: setup $(KERNELS_VENV)/.p2pkv-setup ## All that needs a CUDA device; skipped with the reason where there is none
	$(KERNELS_VENV)/bin/python -m pytest -m gpu -rs tests/p2pkv/test_gpu.py tests/contracts/test_gpu_tier.py tests/bench/test_gpu.py tests/transport/test_nixl_gpu.py
	$(KERNELS_VENV)/bin/python -m pytest -rs tests/p2pkv/test_gpu_kernels.py

bench-gpu: setup $(KERNELS_VENV)/.p2pkv-setup ## Blocks and a paged cache on a GPU, beside plain copies (a minute)
	$(KERNELS_VENV)/bin/python -m p2pkv bench gpu -o json
