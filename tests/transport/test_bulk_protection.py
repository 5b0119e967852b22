"""Two ends agree on the stricter of what they want, and what is only authenticated cannot be altered."""

import pytest

from p2pkv.errors import PeerGone, SealRefused
from p2pkv.transport import mac
from p2pkv.transport.bulk_protection import AEAD_ONLY, BITS, BulkProtection, accepted, agreed, named
from p2pkv.transport.handshake import answer_to
from p2pkv.transport.mac import TagChecker, Tagger
from p2pkv.transport.wire import Hello

KEY = bytes(range(32))
ORDER: list[BulkProtection] = ["off", "mac", "aead"]


@pytest.mark.parametrize("ours", ORDER)
@pytest.mark.parametrize("theirs", ORDER)
def test_the_stricter_of_two_settings_wins(ours: BulkProtection, theirs: BulkProtection) -> None:
    assert named(agreed(accepted(ours), accepted(theirs))) == max(ours, theirs, key=ORDER.index)


def test_whoever_accepts_nothing_in_common_is_refused_and_told_why() -> None:
    hello = Hello("c", "a", "", 1, bulk=BITS["off"] | 8)
    ack, error = answer_to(hello, cluster="c", node_id="b", peer="a", bulk=AEAD_ONLY)
    assert "aead accepted here, off there" in ack.refusal
    assert ack.refusal in str(error)


@pytest.mark.parametrize("bit", [0, 3, 8, 2**15])
def test_what_is_not_one_known_protection_has_no_name(bit: int) -> None:
    assert named(bit) is None


def tagged(*pieces: bytes) -> list[tuple[bytes, bytes]]:
    tagger = Tagger(KEY)
    return [(piece, tagger.tag(piece)) for piece in pieces]


def test_pieces_in_order_are_authentic() -> None:
    checker = TagChecker(KEY, peer="b")
    for piece, tag in tagged(b"one", b"two", b""):
        checker.check(memoryview(piece), tag)


ONE, TWO = tagged(b"one", b"two")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(TWO, None, id="missing"),
        pytest.param(ONE, ONE, id="repeated"),
        pytest.param((b"onf", ONE[1]), None, id="altered"),
        pytest.param((b"on", ONE[1]), None, id="cut"),
        pytest.param((b"onetwo", ONE[1]), None, id="joined"),
        pytest.param((b"one", bytes(16)), None, id="no tag"),
        pytest.param(ONE, (b"two", ONE[1]), id="another's tag"),
    ],
)
def test_pieces_that_were_changed_on_the_way_are_not(
    first: tuple[bytes, bytes], second: tuple[bytes, bytes] | None
) -> None:
    checker, pieces = TagChecker(KEY, peer="b"), [one for one in (first, second) if one is not None]
    for piece, tag in pieces[:-1]:
        checker.check(memoryview(piece), tag)
    with pytest.raises(SealRefused, match="altered"):
        checker.check(memoryview(pieces[-1][0]), pieces[-1][1])


def test_a_key_that_is_used_up_tags_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mac, "RECORDS_MAX", 1)
    tagger = Tagger(KEY)
    tagger.tag(b"one")
    with pytest.raises(PeerGone, match="used up"):
        tagger.tag(b"two")
