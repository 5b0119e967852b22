"""`mdns://`: nodes of one network segment announce themselves by multicast DNS and find each other.

`mdns://IP` does so on the interface that has this address only. Each node announces an instance of the service type
below with its address, and the cluster's name in a TXT record; instances of other clusters are passed over. Anybody on
the segment may announce anything: as everywhere here, what is found is asked and not trusted.
"""

import ipaddress
import socket
import threading
from typing import TYPE_CHECKING, Final

import trio

from p2pkv.config import format_address, parse_address
from p2pkv.discovery.base import Found, LookupFailed, need, shortened
from p2pkv.errors import ConfigError
from p2pkv.transport.wire import MemberRecord

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, ServiceStateChange, Zeroconf

SERVICE_TYPE: Final = "_p2pkv._tcp.local."
INSTANCES_MAX: Final = 128
"""Announcements remembered; a segment that has more of them needs seeds of another kind."""
_ANSWER_MS: Final = 2000
_TXT_BYTES_MAX: Final = 200
"""Of the cluster's name; a TXT record holds 255."""


class MdnsResolver:
    """Announces and browses from the first look-up on; later ones return what has been heard so far."""

    def __init__(self, source: str, *, me: MemberRecord, cluster: str) -> None:
        """Take `mdns://` or `mdns://IP`.

        Raises:
            ConfigError: it is something else, or zeroconf is not installed.
        """
        interface = source.removeprefix("mdns://")
        try:
            self._interface = str(ipaddress.ip_address(interface)) if interface else ""
        except ValueError as exc:
            raise ConfigError(
                f"node.join has {source!r}, must be mdns:// or mdns://IP", hint="for example mdns://"
            ) from exc
        need("zeroconf", "zeroconf", source=source)
        self._me = me
        self._cluster = cluster.encode()[:_TXT_BYTES_MAX]
        self._heard = _Heard(self._cluster, f"{me.id}-{me.boot:x}.{SERVICE_TYPE}")
        self._zeroconf: Zeroconf | None = None

    async def resolve(self) -> Found:
        """See `Resolver`."""
        if self._zeroconf is None:
            self._zeroconf = await trio.to_thread.run_sync(self._start)
        return Found(self._heard.addresses())

    async def aclose(self) -> None:
        """Take the announcement back, so that nobody asks a node that has left."""
        if self._zeroconf is not None:
            closing, self._zeroconf = self._zeroconf, None
            await trio.to_thread.run_sync(closing.close, abandon_on_cancel=True)  # it unregisters first

    def _start(self) -> "Zeroconf":
        from zeroconf import Error, InterfaceChoice, ServiceBrowser, Zeroconf

        announcement = self._announcement()
        zeroconf: Zeroconf | None = None
        try:
            if self._interface:
                _check_interface(self._interface)
            zeroconf = Zeroconf(interfaces=[self._interface] if self._interface else InterfaceChoice.Default)
            zeroconf.register_service(announcement)
            ServiceBrowser(zeroconf, SERVICE_TYPE, handlers=[self._heard.on_change])
        except (OSError, Error, ValueError) as exc:
            if zeroconf is not None:
                zeroconf.close()
            raise LookupFailed(shortened(f"no multicast ({str(exc) or type(exc).__name__})")) from exc
        return zeroconf

    def _announcement(self) -> "ServiceInfo":
        from zeroconf import ServiceInfo

        host, port = parse_address(self._me.address)
        if ipaddress.ip_address(host).is_unspecified:
            raise LookupFailed(f"{self._me.address} is no address to announce: set node.advertise")
        name = self._heard.own
        return ServiceInfo(
            SERVICE_TYPE,
            name,
            addresses=[ipaddress.ip_address(host).packed],
            port=port,
            server=f"{name.partition('.')[0]}.local.",
            properties={b"cluster": self._cluster},
        )


def _check_interface(address: str) -> None:
    """Raise OSError where no interface has `address`. Zeroconf does so too, and leaves its sockets open."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))


class _Heard:
    """Listens in zeroconf's thread; asked from ours."""

    def __init__(self, cluster: bytes, own: str) -> None:
        self.own: Final = own
        self._cluster = cluster
        self._lock = threading.Lock()
        self._found: dict[str, tuple[str, ...]] = {}

    def addresses(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(dict.fromkeys(address for found in self._found.values() for address in found))

    def on_change(
        self, *, zeroconf: "Zeroconf", service_type: str, name: str, state_change: "ServiceStateChange"
    ) -> None:
        """Take that an instance is there, says something new, or is gone."""
        if name == self.own:
            return
        info = None
        if state_change.name != "Removed":
            info = zeroconf.get_service_info(service_type, name, timeout=_ANSWER_MS)
        with self._lock:
            if info is None or not info.port or info.properties.get(b"cluster") != self._cluster:
                self._found.pop(name, None)
            elif name in self._found or len(self._found) < INSTANCES_MAX:
                hosts = info.parsed_scoped_addresses()
                self._found[name] = tuple(format_address(host, info.port) for host in hosts)
