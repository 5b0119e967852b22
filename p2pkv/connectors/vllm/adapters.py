"""Which LoRA adapter: its name says nothing about its weights on another node, so its files do."""

import hashlib
import os
from pathlib import Path
from typing import Any, Final, TypeAlias

_ADAPTERS_MAX: Final = 1024
_Stamp: TypeAlias = tuple[tuple[str, int, int], ...]


class AdapterDigests:
    """Names of adapters for keys. Files are read once for each state they are in."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[_Stamp, str]] = {}

    def name(self, lora_request: Any) -> str | None:
        """Return a name that is the same on every node for equal adapters and for no others; None if there is none.

        Args:
            lora_request: a `vllm.lora.request.LoRARequest`; its path must be a folder on this machine.
        """
        try:
            files = sorted(path for path in Path(lora_request.lora_path).iterdir() if path.is_file())
            stamp = tuple((path.name, *_state(path)) for path in files)
            known = self._known.get(lora_request.lora_path)
            if known is None or known[0] != stamp:
                known = (stamp, _digest(files))
                if len(self._known) >= _ADAPTERS_MAX:
                    self._known.pop(next(iter(self._known)))
                self._known[lora_request.lora_path] = known
        except OSError:
            return None
        return f"{lora_request.lora_name}@{known[1]}" if files else None


def _state(path: Path) -> tuple[int, int]:
    found = os.stat(path)  # noqa: PTH116 - one call for both
    return found.st_size, found.st_mtime_ns


def _digest(files: list[Path]) -> str:
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            whole.update(f"{path.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\0".encode())
    return whole.hexdigest()
