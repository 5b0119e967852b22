"""`dns://NAME:PORT`, all addresses of a name, and `dns+srv://NAME`, all that its SRV records point to.

`?server=IP:PORT` at the end asks that name server instead of the system's. Names are completed as the system says, so
that a headless service of Kubernetes may be named as short as in its namespace.
"""

from typing import TYPE_CHECKING, Final

from p2pkv.config import format_address, parse_address
from p2pkv.discovery.base import Found, LookupFailed, need, shortened
from p2pkv.errors import ConfigError

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver as AsyncResolver

LOOKUP_S: Final = 5.0
"""Longest one question may take, retries and all name servers included."""
TARGETS_MAX: Final = 64
"""SRV targets that are looked up; further ones are left out."""
_TYPES: Final = ("A", "AAAA")


class DnsResolver:
    """Asks through dnspython, which waits on trio itself."""

    def __init__(self, source: str) -> None:
        """Take `dns://NAME:PORT` or `dns+srv://NAME`.

        Raises:
            ConfigError: it is neither, or dnspython is not installed.
        """
        self._is_srv = source.startswith("dns+srv://")
        text, _, option = source.partition("://")[2].partition("?")
        key, _, self._server = option.partition("=")
        if option and (key != "server" or not self._server):
            raise ConfigError(
                f"node.join has {source!r}, its only option is server", hint="for example ?server=10.0.0.2:53"
            )
        if self._server:
            parse_address(self._server, what=f"the server of {source!r}")
        if self._is_srv:
            self._name, self._port = text, 0
            if not text or ":" in text:
                raise ConfigError(
                    f"node.join has {source!r}, must be dns+srv://NAME, the port is in the record",
                    hint="for example dns+srv://_p2pkv._tcp.example.org",
                )
        else:
            self._name, self._port = parse_address(text, what=f"node.join's {source!r}")
        need("dns", "dnspython", source=source)

    async def resolve(self) -> Found:
        """See `Resolver`."""
        from dns.exception import DNSException

        try:
            resolver = self._resolver()
            if self._is_srv:
                return await self._services(resolver)
            hosts = await _hosts(resolver, self._name)
        except (DNSException, OSError, ValueError) as exc:
            raise LookupFailed(_why(exc)) from exc
        return Found(tuple(format_address(host, self._port) for host in hosts))

    async def aclose(self) -> None:
        """See `Resolver`."""

    def _resolver(self) -> "AsyncResolver":
        from dns.asyncresolver import Resolver as AsyncResolver

        if not self._server:
            return AsyncResolver()
        resolver = AsyncResolver(configure=False)
        host, port = parse_address(self._server)
        resolver.nameservers, resolver.port = [host], port
        return resolver

    async def _services(self, resolver: "AsyncResolver") -> Found:
        """Return what the SRV records point to, the preferred first; a target without an address is a complaint."""
        from dns.exception import DNSException

        answer = await resolver.resolve(self._name, "SRV", search=True, lifetime=LOOKUP_S)
        records = sorted(answer, key=lambda record: (record.priority, -record.weight, record.target, record.port))
        found: list[str] = []
        complaint = "" if len(records) <= TARGETS_MAX else f"{len(records)} targets, limit {TARGETS_MAX}"
        for record in records[:TARGETS_MAX]:
            try:
                hosts = await _hosts(resolver, record.target.to_text())
            except (DNSException, LookupFailed) as exc:
                complaint = complaint or f"target {record.target.to_text(omit_final_dot=True)}: {_why(exc)}"
                continue
            found += [format_address(host, record.port) for host in hosts]
        if complaint and not found:
            raise LookupFailed(shortened(complaint))
        return Found(tuple(dict.fromkeys(found)), shortened(complaint))


async def _hosts(resolver: "AsyncResolver", name: str) -> list[str]:
    """Return all IPv4 and IPv6 addresses of `name`. One family that cannot be had does not hide the other."""
    from dns.exception import DNSException

    hosts: list[str] = []
    failure: DNSException | None = None
    for kind in _TYPES:
        try:
            answer = await resolver.resolve(name, kind, search=True, lifetime=LOOKUP_S, raise_on_no_answer=False)
        except DNSException as exc:
            failure = failure or exc
        else:
            hosts += [record.address for record in answer]
    if failure is not None and not hosts:
        raise failure
    if not hosts:
        raise LookupFailed("the name has no address")
    return hosts


def _why(error: Exception) -> str:
    from dns.resolver import NXDOMAIN, LifetimeTimeout, NoAnswer, NoNameservers

    match error:
        case NXDOMAIN():
            return "there is no such name"
        case NoAnswer():
            return "the name has no such record"
        case LifetimeTimeout():
            return f"no answer within {LOOKUP_S:g} s"
        case NoNameservers():
            return "every name server refused or failed"
    return shortened(str(error) or type(error).__name__)
