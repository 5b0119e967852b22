"""The protocols that experiments compare: plain SWIM, each part of Lifeguard, all of it, and what is shipped.

All else is the LAN profile in each of them, the ping over the stream included, so a difference is that of the named parts.
"""

from typing import Final

import msgspec

from p2pkv.config import MeshConfig

VARIANTS: Final[dict[str, MeshConfig]] = {
    "swim": MeshConfig(local_health=False, dynamic_suspicion=False, buddy=False, observers=0),
    "lha_probe": MeshConfig(dynamic_suspicion=False, buddy=False, observers=0),
    "lha_suspicion": MeshConfig(local_health=False, buddy=False, observers=0),
    "buddy": MeshConfig(local_health=False, dynamic_suspicion=False, observers=0),
    "lifeguard": MeshConfig(observers=0),
    "observers": MeshConfig(),
}
"""By name. `observers` is Lifeguard with confirmation by several observers: the defaults, with nothing changed."""


def without_stream(mesh: MeshConfig) -> MeshConfig:
    """Return the same protocol with datagrams only: SWIM as it was published has no ping over a stream."""
    return msgspec.structs.replace(mesh, stream_probe=False)
