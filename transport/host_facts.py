"""What this host has, as far as fabrics go: read from the kernel, nothing is loaded or opened."""

import fcntl
import socket
import struct
from pathlib import Path
from typing import Final

from p2pkv.transport.fabrics import HostFacts
from p2pkv.transport.nixl import reach
from p2pkv.transport.udp import numeric_target

_SIOCGIFADDR: Final = 0x8915
_REQUEST: Final = struct.Struct("16s24x")
_ADDRESS: Final = slice(20, 24)


def host_facts(address: str) -> HostFacts:
    """Return what there is for a node that others reach at `address`, `host:port`."""
    return HostFacts(reach=reach(), rdma_devices=rdma_devices(), gpu=has_gpu(), interfaces=interfaces_of(address))


def rdma_devices() -> tuple[str, ...]:
    """Return the names of network cards that read and write memory by themselves."""
    folder = Path("/sys/class/infiniband")
    return tuple(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else ()


def has_gpu() -> bool:
    """Say whether the kernel has a GPU of NVIDIA's."""
    return Path("/proc/driver/nvidia/gpus").is_dir() or Path("/dev/nvidia0").exists()


def interfaces_of(address: str) -> tuple[str, ...]:
    """Return the network interfaces that have the host of `address`, or all that have an address if it is none of them."""
    target = numeric_target(address)
    host = target[0] if target is not None else ""
    if host.startswith("127.") or host == "::1":
        return ("lo",)
    found = {name: _addresses(name) for _, name in socket.if_nameindex() if name != "lo"}
    mine = tuple(name for name, addresses in found.items() if host in addresses)
    return mine or tuple(name for name, addresses in found.items() if addresses)


def _addresses(interface: str) -> set[str]:
    addresses = set[str]()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as question:
        try:
            answer = fcntl.ioctl(question, _SIOCGIFADDR, _REQUEST.pack(interface.encode()[:15]))
            addresses.add(socket.inet_ntoa(answer[_ADDRESS]))
        except OSError:  # it has none of IPv4
            pass
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    except OSError:
        return addresses
    for line in lines:
        digits, *_, name = line.split()
        if name == interface:
            addresses.add(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)))
    return addresses
