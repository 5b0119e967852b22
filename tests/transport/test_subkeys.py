"""Derivations: the vectors of RFC 5869, an independent HKDF, and frozen bytes that a change of ours would break."""

import hmac
import json
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.transport.keyring import KeyRing, fingerprint
from p2pkv.transport.mac import Tagger
from p2pkv.transport.records import RecordSealer
from p2pkv.transport.seal import DatagramSeal
from p2pkv.transport.sealed_handshake import Opening, answer, opened_untrusted
from p2pkv.transport.subkeys import datagram_key, derive, hello_key, sender_digest, stream_keys
from p2pkv.transport.wire import Hello, HelloAck

GOLDEN = json.loads((Path(__file__).parent / "golden_seal.json").read_text(encoding="utf-8"))

# RFC 5869, appendix A.1 to A.3: (key material, salt, info, output) with SHA-256.
RFC_5869 = [
    (
        "0b" * 22,
        "000102030405060708090a0b0c",
        "f0f1f2f3f4f5f6f7f8f9",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    (
        bytes(range(0x50)).hex(),
        bytes(range(0x60, 0xB0)).hex(),
        bytes(range(0xB0, 0x100)).hex(),
        (
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
            "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87"
        ),
    ),
    ("0b" * 22, "", "", "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"),
]


@pytest.mark.parametrize(("material", "salt", "info", "output"), RFC_5869, ids=["A.1", "A.2", "A.3"])
def test_hkdf_gives_the_outputs_of_the_rfc(material: str, salt: str, info: str, output: str) -> None:
    expected = bytes.fromhex(output)
    derived = derive(bytes.fromhex(material), salt=bytes.fromhex(salt), info=bytes.fromhex(info), length=len(expected))
    assert derived == expected


def hkdf(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 from its text, on the standard library alone."""
    extracted = hmac.digest(salt or bytes(32), key, sha256)
    out, last, number = b"", b"", 0
    while len(out) < length:
        number += 1
        last = hmac.digest(extracted, last + info + bytes([number]), sha256)
        out += last
    return out[:length]


keys = st.binary(min_size=32, max_size=32)


@given(keys, st.binary(min_size=16, max_size=16), st.text(min_size=1, max_size=64), st.integers(0, 2**53))
def test_the_key_of_datagrams_is_what_its_description_says(key: bytes, salt: bytes, node: str, boot: int) -> None:
    digest = sha256(node.encode()).digest()[:8]
    assert sender_digest(node) == digest
    expected = hkdf(key, salt, b"p2pkv datagram 1" + digest + boot.to_bytes(8, "big"), 32)
    assert datagram_key(key, sender=digest, boot=boot, salt=salt) == expected


@given(keys, keys, st.binary(max_size=100))
def test_the_keys_of_streams_are_what_their_description_says(key: bytes, random: bytes, opening: bytes) -> None:
    assert hello_key(key, caller_random=random) == hkdf(key, random, b"p2pkv hello 1", 32)
    expected = hkdf(key, random, b"p2pkv stream 1" + sha256(opening).digest(), 96)
    derived = stream_keys(key, opening=opening, called_random=random)
    assert derived.from_caller + derived.from_called + derived.tags_from_called == expected


def test_a_datagram_opens_with_nothing_but_the_library_and_the_description() -> None:
    """What another implementation would have to do."""
    key, salt = bytes(range(32)), bytes(range(16))
    seal = DatagramSeal(node_id="node-0001", boot=1_700_000_000_000, ring=lambda: KeyRing((key,)), salt=salt)
    seal.seal(b"first")
    data = seal.seal(b"what it says")
    head = data[:42]
    assert head[0] == 1
    assert head[1:5] == sha256(b"p2pkv key fingerprint 1" + key).digest()[:4]
    assert head[5:13] == sha256(b"node-0001").digest()[:8]
    assert int.from_bytes(head[13:20], "big") == 1_700_000_000_000
    assert head[20:36] == salt
    assert int.from_bytes(head[36:42], "big") == 2
    subkey = hkdf(key, salt, b"p2pkv datagram 1" + head[5:13] + (1_700_000_000_000).to_bytes(8, "big"), 32)
    assert AESGCM(subkey).decrypt((2).to_bytes(12, "big"), data[42:], head) == b"what it says"


def test_what_is_sealed_is_frozen_to_the_byte() -> None:
    """If this fails, nodes of this version and the last do not understand each other: that needs a new format number."""
    assert made() == {name: value for name, value in GOLDEN.items() if name != "about"}


def made() -> dict[str, str]:
    key, random = bytes(range(32)), bytes(range(100, 132))
    ring = KeyRing((key,))
    seal = DatagramSeal(node_id="node-0001", boot=1_700_000_000_000, ring=lambda: ring, salt=bytes(range(16)))
    opening = Opening(Hello("default", "a", "127.0.0.1:1", 0), key, random=random)
    hello, named = opened_untrusted(opening.payload, ring, peer="p")
    assert (hello.node, named) == ("a", key)
    said, session = answer(HelloAck("b", 1), opening.payload, key, random=bytes(range(200, 232)))
    return {
        "fingerprint": fingerprint(key).hex(),
        "datagram": seal.seal(b"what it says").hex(),
        "opening": opening.payload.hex(),
        "answer": said.hex(),
        "from_caller": session.from_caller.hex(),
        "from_called": session.from_called.hex(),
        "tags_from_called": session.tags_from_called.hex(),
        "tag": Tagger(session.tags_from_called).tag(b"bytes that all may read").hex(),
        "record": RecordSealer(session.from_caller).seal(b"bytes of the stream").hex(),
    }
