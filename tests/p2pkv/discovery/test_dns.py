"""Names are asked of a real name server on loopback."""

from collections.abc import Iterator

import pytest
import trio

from p2pkv.discovery import dns as module
from p2pkv.discovery.base import Found, LookupFailed
from p2pkv.discovery.dns import DnsResolver
from p2pkv.errors import ConfigError
from tests.nameserver import NameServer, name_server


@pytest.fixture
def server() -> Iterator[NameServer]:
    with name_server() as server:
        yield server


def look_up(entry: str, server: NameServer) -> Found:
    return trio.run(DnsResolver(f"{entry}?server={server.address}").resolve)


def test_all_addresses_of_a_name_are_seeds(server: NameServer) -> None:
    server.records["seeds.test", "A"] = ["10.0.0.1", "10.0.0.2"]
    server.records["seeds.test", "AAAA"] = ["fd00::1"]
    found = look_up("dns://seeds.test:7710", server)
    assert sorted(found.addresses) == ["10.0.0.1:7710", "10.0.0.2:7710", "[fd00::1]:7710"]
    assert not found.complaint


def test_a_name_of_one_family_is_enough(server: NameServer) -> None:
    server.records["six.test", "AAAA"] = ["fd00::1"]
    assert look_up("dns://six.test:1", server).addresses == ("[fd00::1]:1",)


def test_each_look_up_asks_anew(server: NameServer) -> None:
    resolver = DnsResolver(f"dns://seeds.test:7710?server={server.address}")
    server.records["seeds.test", "A"] = ["10.0.0.1"]
    assert trio.run(resolver.resolve).addresses == ("10.0.0.1:7710",)
    server.records["seeds.test", "A"] = ["10.0.0.2"]
    assert trio.run(resolver.resolve).addresses == ("10.0.0.2:7710",)


def test_services_lead_to_addresses_and_ports_the_preferred_first(server: NameServer) -> None:
    server.records["_p2pkv._tcp.test", "SRV"] = ["20 0 7712 c.test.", "10 5 7710 a.test.", "10 60 7711 b.test."]
    for last, host in enumerate(("a.test", "b.test", "c.test"), start=1):
        server.records[host, "A"] = [f"10.0.0.{last}"]
    found = look_up("dns+srv://_p2pkv._tcp.test", server)
    assert found.addresses == ("10.0.0.2:7711", "10.0.0.1:7710", "10.0.0.3:7712")


def test_a_service_whose_target_has_no_address_does_not_hide_the_others(server: NameServer) -> None:
    server.records["_p2pkv._tcp.test", "SRV"] = ["10 0 7710 gone.test.", "20 0 7710 a.test."]
    server.records["a.test", "A"] = ["10.0.0.1"]
    found = look_up("dns+srv://_p2pkv._tcp.test", server)
    assert found == Found(("10.0.0.1:7710",), "target gone.test: there is no such name")


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("dns://nowhere.test:1", "there is no such name"),
        ("dns://text.test:1", "the name has no address"),
        ("dns+srv://nowhere.test", "there is no such name"),
        ("dns+srv://text.test", "the name has no such record"),
        ("dns+srv://lost.test", "target gone.test: there is no such name"),
    ],
)
def test_what_cannot_be_found_says_why(server: NameServer, entry: str, why: str) -> None:
    server.records["text.test", "TXT"] = ['"hello"']
    server.records["lost.test", "SRV"] = ["10 0 7710 gone.test."]
    with pytest.raises(LookupFailed) as caught:
        look_up(entry, server)
    assert str(caught.value) == why


@pytest.mark.parametrize("kind", ["silent", "garbage"])
def test_a_server_that_is_no_use_is_waited_for_so_long_and_no_longer(
    server: NameServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOKUP_S", 0.3)
    setattr(server, kind, True)
    with pytest.raises(LookupFailed) as caught:
        look_up("dns://seeds.test:7710", server)
    assert str(caught.value) == "no answer within 0.3 s"


@pytest.mark.parametrize(
    "entry",
    [
        "dns://",
        "dns://seeds.test",
        "dns://seeds.test:0x1",
        "dns://seeds.test:7710?ttl=5",
        "dns://seeds.test:7710?server=",
        "dns://seeds.test:7710?server=10.0.0.1",
        "dns+srv://",
        "dns+srv://seeds.test:7710",
    ],
)
def test_an_entry_that_means_nothing_is_refused_at_the_start(entry: str) -> None:
    with pytest.raises(ConfigError):
        DnsResolver(entry)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pkv.discovery.base.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="needs the package dnspython") as caught:
        DnsResolver("dns://seeds.test:7710")
    assert caught.value.hint == "pip install 'p2pkv[discovery]'"
