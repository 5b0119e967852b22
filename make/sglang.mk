# SGLang's storage interface: its wheel is unpacked beside, and nothing of the two gigabytes it depends on is installed.

SGLANG_VERSION := 0.5.23
SGLANG_FOLDER := .cache/sglang-$(SGLANG_VERSION)

.PHONY: test-sglang

$(SGLANG_FOLDER)/.unpacked: | $(STAMP)
	@mkdir -p $(SGLANG_FOLDER)
	$(BIN)/python -m pip download --quiet --no-deps --only-binary :all: --dest $(SGLANG_FOLDER) sglang==$(SGLANG_VERSION)
	$(BIN)/python -m zipfile --extract $(SGLANG_FOLDER)/sglang-*.whl $(SGLANG_FOLDER)
	@rm $(SGLANG_FOLDER)/sglang-*.whl && touch $@

test-sglang: setup $(SGLANG_FOLDER)/.unpacked ## The SGLang backend under SGLang's own interface (39 MB)
	$(BIN)/python -m pytest -m sglang tests/sglang
