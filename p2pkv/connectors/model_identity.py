"""Which weights and which configuration: what must be the same for KV to be the same, whatever engine made it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from p2pkv.errors import ConfigError

_UNIMPORTANT_CONFIG: Final = frozenset(
    {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
    | {"bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "id2label", "label2id", "pretraining_tp"}
)
"""What a configuration says that cannot change KV. Anything not listed here, known or not, does: a miss is the safe side.
The dtype is in the layout, as the cache really has it."""


def weights_digest(folder: Path) -> str:
    """Return the digest of the weight files in `folder`: names and bytes. About a second per 1.5 GB.

    Raises:
        ConfigError: there are none.
    """
    files = sorted(path for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
    if not files:
        raise ConfigError(f"no *.safetensors or *.bin in the folder: {folder}")
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            whole.update(f"{path.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\0".encode())
    return f"sha256:{whole.hexdigest()}"


def decisive_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a model's configuration may change its KV."""
    return {name: value for name, value in config.items() if name not in _UNIMPORTANT_CONFIG}


def canonical_json(value: object) -> bytes:
    """Return `value` as JSON that is the same bytes on every node."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()


def with_config(weights_id: str, config: Mapping[str, Any]) -> str:
    """Return `weights_id` together with what else decides KV: a namespace's `weights_id`."""
    return f"{weights_id}+config:{hashlib.sha256(canonical_json(config)).hexdigest()}"
