import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.config import parse_address
from p2pkv.discovery.base import REASON_CHARACTERS_MAX, Found, LookupFailed, addresses_in, shortened


def test_one_address_a_line_with_comments_and_white_space() -> None:
    text = b"# ours\n10.0.0.1:7710\n\n  seed.example.org:7710  # the old one\r\n[fd00::1]:7710\n10.0.0.1:7710\n"
    assert addresses_in(text) == Found(("10.0.0.1:7710", "seed.example.org:7710", "[fd00::1]:7710"))


def test_a_file_without_a_line_gives_nothing_and_is_no_failure() -> None:
    assert addresses_in(b"\n# nobody yet\n") == Found(())


def test_a_line_that_is_none_is_left_out_and_complained_of() -> None:
    found = addresses_in(b"10.0.0.1:7710\nlocalhost\nnonsense\n")
    assert found.addresses == ("10.0.0.1:7710",)
    assert found.complaint.startswith("line 2 is 'localhost'")


def test_nothing_but_garbage_is_a_failure() -> None:
    with pytest.raises(LookupFailed, match="line 1 is "):
        addresses_in(b"\x00\xff\x1b[31m<html>: 404\n")


@given(st.binary(max_size=300))
def test_whatever_is_in_it_the_result_is_addresses_or_a_failure_in_one_line(data: bytes) -> None:
    try:
        found = addresses_in(data)
    except LookupFailed as exc:
        reason = str(exc)
    else:
        reason = found.complaint
        for address in found.addresses:
            parse_address(address)
            assert address.isascii()
            assert address.isprintable()
    assert shortened(reason) == reason
    assert len(reason) <= REASON_CHARACTERS_MAX
