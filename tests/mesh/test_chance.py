from collections import Counter
from random import Random

from p2pkv.mesh.chance import pick, sample


def test_a_sample_has_no_repetitions_and_no_more_than_there_are() -> None:
    random = Random(0)
    assert sorted(sample("abcde", 9, random)) == list("abcde")
    assert len(set(sample("abcde", 3, random))) == 3
    assert sample("", 3, random) == []


def test_every_order_is_about_equally_likely() -> None:
    random = Random(0)
    counts = Counter("".join(sample("abc", 3, random)) for _ in range(6000))
    assert len(counts) == 6
    assert all(850 < count < 1150 for count in counts.values())


def test_nothing_but_random_is_asked_for_chance() -> None:
    class OnlyRandom(Random):
        def getrandbits(self, k: int, /) -> int:
            raise AssertionError(f"getrandbits({k})")

    random = OnlyRandom(0)
    assert pick("abc", random) in "abc"
    assert len(sample("abc", 2, random)) == 2
