"""Hosts of one network on one machine: a namespace each, joined by a switch, whose links can be cut in one direction.

A cut is a neighbour entry: the sender has a wrong hardware address for the receiver, and for nobody else, for good. Its
frames leave and nobody takes them, which is what a broken link looks like: no error, no answer. It needs `ip` and
the right to make namespaces, and neither a packet filter nor a module for lossy queues, which many machines lack.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_NOBODY = "02:00:00:00:00:ff"
_CONNECTS = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])).close()
except OSError:
    sys.exit(1)
"""


class NoNamespacesError(Exception):
    """This machine does not let us; the message says what it refused."""


@dataclass(frozen=True)
class Host:
    """One namespace with one address."""

    namespace: str
    ip: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before a command to run it on this host. It replaces itself, so the process id stays."""
        return ("ip", "netns", "exec", self.namespace)

    def connects(self, other: "Host", port: int, *, timeout_s: float) -> bool:
        """Whether a TCP connection to `other` opens."""
        command = [*self.prefix, sys.executable, "-I", "-c", _CONNECTS, other.ip, str(port), str(timeout_s)]
        return subprocess.run(command, check=False).returncode == 0


@contextmanager
def network(count: int) -> Iterator[tuple[Host, ...]]:
    """Make `count` hosts that reach each other, and take them away, however the block ends.

    Raises:
        NoNamespacesError: this machine does not let us.
    """
    if shutil.which("ip") is None:
        raise NoNamespacesError("there is no `ip` command (package iproute2)")
    base = f"p2pkv-{os.getpid()}"
    switch = f"{base}-switch"
    hosts = tuple(Host(f"{base}-{number}", f"10.77.0.{number + 1}") for number in range(count))
    made: list[str] = []
    try:
        _add(switch, made)
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        for number, host in enumerate(hosts):
            _add(host.namespace, made)
            port = ("type", "veth", "peer", "name", f"port{number}", "netns", switch)
            _ip("-n", host.namespace, "link", "add", "eth0", *port)
            _ip("-n", switch, "link", "set", f"port{number}", "master", "switch", "up")
            _ip("-n", host.namespace, "address", "add", f"{host.ip}/24", "dev", "eth0")
            _ip("-n", host.namespace, "link", "set", "eth0", "up")
            _ip("-n", host.namespace, "link", "set", "lo", "up")
        yield hosts
    finally:
        for namespace in made:
            subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)


def cut(source: Host, target: Host) -> None:
    """Lose everything that `source` sends to `target` from now on; the other direction stays."""
    _ip("-n", source.namespace, "neigh", "replace", target.ip, "lladdr", _NOBODY, "dev", "eth0", "nud", "permanent")


def repair(source: Host, target: Host) -> None:
    """Undo `cut`."""
    _ip("-n", source.namespace, "neigh", "delete", target.ip, "dev", "eth0")


def _add(namespace: str, made: list[str]) -> None:
    _ip("netns", "add", namespace)
    made.append(namespace)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoNamespacesError(f"`ip {' '.join(arguments)}` says: {done.stderr.strip()}")
