"""Share the KV cache of large language models between inference nodes, peer to peer, without a server.

Names are imported when first used: an engine that imports `p2pkv` for its errors does not pay for numpy, and nothing
here ever imports torch, transformers, rich or prometheus_client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pkv.blocks import BlockKey as BlockKey
    from p2pkv.blocks import CanonicalLayout as CanonicalLayout
    from p2pkv.blocks import Extras as Extras
    from p2pkv.blocks import LatentLayout as LatentLayout
    from p2pkv.blocks import Namespace as Namespace
    from p2pkv.blocks import OpaqueLayout as OpaqueLayout
    from p2pkv.blocks import Tenant as Tenant
    from p2pkv.client import Client as Client
    from p2pkv.errors import P2pkvError as P2pkvError
    from p2pkv.index.hashing import chain_keys as chain_keys
    from p2pkv.nodes import connect as connect

__version__ = "0.1.0"

_HOME = {
    "BlockKey": "p2pkv.blocks",
    "CanonicalLayout": "p2pkv.blocks",
    "Client": "p2pkv.client",
    "Extras": "p2pkv.blocks",
    "LatentLayout": "p2pkv.blocks",
    "Namespace": "p2pkv.blocks",
    "OpaqueLayout": "p2pkv.blocks",
    "P2pkvError": "p2pkv.errors",
    "Tenant": "p2pkv.blocks",
    "chain_keys": "p2pkv.index.hashing",
    "connect": "p2pkv.nodes",
}

__all__ = [  # noqa: PLE0604 - every name is served by __getattr__, and a test imports each
    "__version__",
    *_HOME,
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'p2pkv' has no attribute {name!r}")
    return getattr(import_module(home), name)
