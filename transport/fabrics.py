"""Which fabric blocks take between two nodes, and how the fabric's library is set up on a host; sans-IO.

A fabric is what moves bytes below NIXL: `cma`, the kernel copying between two processes; `rdma`, a network card that
reads and writes memory by itself; `tcp`, sockets. Over the first two the receiver reads, and the owner's processor has no
part in it. Over the last, where a read would need the owner's processor anyway, the owner looks after its lease and writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

Fabric: TypeAlias = Literal["cma", "rdma", "tcp"]
FABRICS: Final[tuple[Fabric, ...]] = get_args(Fabric)
"""Best first."""
TRUSTED: Final = "trusted fabric"
"""How a protection is called that is none: whoever is on the fabric is believed."""
PROTECTED_BY: Final[dict[Fabric, str]] = {
    "cma": "the kernel: same user",
    "rdma": f"none: a {TRUSTED}",
    "tcp": "none: off, or this machine alone",
}
"""What protects blocks on their way over each."""
ONE_SIDED: Final = frozenset[Fabric]({"cma", "rdma"})


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host has, as far as fabrics go."""

    reach: str
    """Equal in two processes of which each may copy out of the other; empty if this one may copy out of none."""
    rdma_devices: tuple[str, ...] = ()
    gpu: bool = False
    interfaces: tuple[str, ...] = ()
    """Network interfaces that the node is bound to."""


@dataclass(frozen=True, slots=True)
class LibrarySettings:
    """What UCX, below NIXL, is told. Always told: left alone it would listen on every interface and try everything."""

    tls: str
    net_devices: str
    modules: str
    """Of UCX, to load or, after a `^`, not to load; empty: all."""


def fabrics_of(facts: HostFacts) -> tuple[Fabric, ...]:
    """Return the fabrics a host has, best first."""
    have = {"cma": bool(facts.reach), "rdma": bool(facts.rdma_devices), "tcp": bool(facts.interfaces)}
    return tuple(fabric for fabric in FABRICS if have[fabric])


def library_settings(facts: HostFacts, *, tls: str = "", net_devices: str = "") -> LibrarySettings:
    """Return the settings for a host; `tls` and `net_devices` are what somebody set by hand, or empty."""
    kinds = (["rc", "ud"] if facts.rdma_devices else []) + ["cma", "tcp"]
    kinds += ["cuda_copy", "cuda_ipc"] if facts.gpu else []
    devices = [f"{device}:1" for device in facts.rdma_devices] + list(facts.interfaces)
    return LibrarySettings(
        tls=tls or ",".join(kinds),
        net_devices=net_devices or ",".join(devices),
        modules="" if facts.rdma_devices else "^ib",
    )


@dataclass(frozen=True, slots=True)
class Pair:
    """Two nodes, as one of them sees them after an exchange of offers."""

    mine: Sequence[str]
    theirs: Sequence[str]
    my_reach: str
    their_reach: str
    leaves_host: bool
    protection: str
    """What both want for blocks that leave the machine: see `p2pkv.transport.bulk_protection`."""


def choose_fabric(pair: Pair) -> tuple[Fabric | None, str]:
    """Return the best fabric of a pair and why it is that one, or None and why there is none."""
    both = [fabric for fabric in FABRICS if fabric in pair.mine and fabric in pair.theirs]
    passed_over: list[str] = []
    for fabric in both:
        if fabric == "cma":
            if not pair.leaves_host and pair.my_reach and pair.my_reach == pair.their_reach:
                return fabric, "same machine, user and process namespace"
            elsewhere = "another machine" if pair.leaves_host else "another user or process namespace"
            passed_over.append(f"no copying between processes: {elsewhere}")
        elif fabric == "rdma":
            return fabric, "; ".join([*passed_over, f"both have RDMA devices ({TRUSTED})"])
        elif not pair.leaves_host:
            return fabric, "; ".join([*passed_over, "sockets that do not leave the machine"])
        elif pair.protection == "off":
            return fabric, "; ".join([*passed_over, "sockets, and protection is off"])
        else:
            passed_over.append(f"sockets of the fabric are not encrypted, and protection is {pair.protection}")
    return None, "; ".join(passed_over) or "no fabric that both have"
