"""A ring of keys as a value: what may be done with it, and that nothing says the bytes of a key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.errors import ConfigError
from p2pkv.transport.keyring import (
    FINGERPRINT_BYTES,
    RING_KEYS_MAX,
    KeyRing,
    fingerprint,
    format_key,
    parse_key,
)

A, B, C = (bytes([number]) * 32 for number in (1, 2, 3))


def test_a_key_is_installed_used_and_the_old_one_removed() -> None:
    ring = KeyRing((A,)).install(B)
    assert ring.keys == (A, B)
    ring = ring.use(fingerprint(B))
    assert ring.keys == (B, A)
    assert ring.remove(fingerprint(A)).keys == (B,)


def test_every_step_may_be_repeated() -> None:
    ring = KeyRing((A, B))
    assert ring.install(B) == ring
    assert ring.use(fingerprint(A)) == ring
    assert ring.remove(fingerprint(C)) == ring


def test_the_primary_key_is_not_removed_and_an_unknown_one_not_used() -> None:
    with pytest.raises(ConfigError, match="is the primary key here"):
        KeyRing((A, B)).remove(fingerprint(A))
    with pytest.raises(ConfigError, match=f"no key {fingerprint(C).hex()} here"):
        KeyRing((A, B)).use(fingerprint(C))


def test_a_full_ring_takes_no_further_key_and_says_what_to_do() -> None:
    ring = KeyRing(tuple(bytes([number]) * 32 for number in range(RING_KEYS_MAX)))
    with pytest.raises(ConfigError, match="limit 8") as caught:
        ring.install(b"x" * 32)
    assert "p2pkv keys remove" in caught.value.hint
    assert ring.install(ring.keys[3]) == ring


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_none(length: int) -> None:
    with pytest.raises(ConfigError, match=f"key of {length} bytes, must be 32"):
        KeyRing((A,)).install(bytes(length))


@pytest.mark.parametrize("digits", [4, 8, 16])
def test_first_digits_of_a_fingerprint_name_a_key(digits: int) -> None:
    ring = KeyRing((A, B, C))
    assert ring.resolve(fingerprint(B).hex()[:digits].upper()) == fingerprint(B)


@pytest.mark.parametrize("prefix", ["", "a", "123", "0000", format_key(A)])
def test_what_names_no_key_is_refused_and_not_repeated(prefix: str) -> None:
    """Somebody who pastes the key in place of its fingerprint must not find it in a log."""
    with pytest.raises(ConfigError) as caught:
        KeyRing((A, B)).resolve(prefix)
    assert format_key(A) not in str(caught.value) + caught.value.hint
    assert fingerprint(A).hex() in caught.value.hint


@given(st.binary(min_size=32, max_size=32))
def test_a_key_comes_back_from_its_text(key: bytes) -> None:
    assert parse_key(format_key(key) + "\n") == key


@pytest.mark.parametrize("text", ["", "abc", "not base64!", format_key(A)[:-4], format_key(A + B), "é" * 44])
def test_text_that_is_no_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_key(text)
    assert not text or text not in str(caught.value)
    assert "p2pkv keys generate" in caught.value.hint


def test_a_ring_shows_fingerprints_and_no_key() -> None:
    shown = repr(KeyRing((A, B)))
    assert fingerprint(A).hex() in shown
    for key in (A, B):
        assert repr(key) not in shown
        assert key.hex() not in shown
    assert len(fingerprint(A)) == FINGERPRINT_BYTES
