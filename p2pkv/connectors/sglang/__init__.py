"""SGLang: a storage backend for its hierarchical cache, so that pages other engines computed are fetched from the mesh.

    --enable-hierarchical-cache --hicache-storage-backend dynamic --hicache-storage-backend-extra-config '{
        "backend_name": "p2pkv", "module_path": "p2pkv.connectors.sglang", "class_name": "P2pkvStorage",
        "interface_v1": 1, "p2pkv": {"weights_id": "..."}}'

SGLang names a page by a hash of its tokens and of all before them, and asks for pages by that name. Its threads wait for
storage, not its scheduler, so nothing here needs threads of its own.

    pages.py      pages under SGLang's names <-> blocks; knows the client and no SGLang
    settings.py   what a person may say
    backend.py    the class SGLang loads; the only file that imports SGLang
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pkv.connectors.sglang.backend import P2pkvStorage as P2pkvStorage


def __getattr__(name: str) -> Any:
    """Import the class on first use: the rest of this package serves machines that have no SGLang."""
    if name == "P2pkvStorage":
        from p2pkv.connectors.sglang.backend import P2pkvStorage

        return P2pkvStorage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
