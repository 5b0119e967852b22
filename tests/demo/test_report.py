import msgspec
import pytest

from p2pkv.demo.lines import Answer, From
from p2pkv.demo.report import AfterKill, Facts, Round, claims_of, medians, rows

ROUND = Round(
    ttft_recompute_ms=3000,
    ttft_mesh_ms=200,
    fetch_ms=50,
    build_ms=60,
    remote_blocks=122,
    remote_tokens=1952,
    remote_bytes=89_948_160,
    wrong_bytes=0,
    identical=True,
)
FACTS = Facts(
    nodes=3,
    model="SmolLM2-135M-Instruct",
    dtype="fp32",
    prompt_tokens=1973,
    block_tokens=16,
    block_bytes=737_280,
    outputs_identical=True,
    remote_hit_blocks=122,
    remote_hit_tokens=1952,
    fetched_bytes=89_948_160,
    peer="a",
    transport="tcp",
    ttft_recompute_ms=3000,
    ttft_mesh_ms=200,
    ratio=15,
    wrong_bytes=0,
    survived_kill=True,
    failure_detected_s=2.0,
    rounds=[ROUND],
    answers={},
)
HERE = From(peer="", transport="local", blocks=122, bytes=1)
COMPUTED = Answer(
    text="", tokens=[5, 6], prompt_tokens=1973, ttft_ms=1, hit_blocks=0, hit_tokens=0, sources=[], fetch_ms=0,
    build_ms=0, reason="",
)  # fmt: skip
KEPT = msgspec.structs.replace(COMPUTED, hit_blocks=122, hit_tokens=1952, sources=[HERE])
AFTER = AfterKill(lost=COMPUTED, kept=KEPT, orphan=COMPUTED, detected_s=2.0, members={})


def test_all_claims_hold_when_everything_went_well():
    assert all(msgspec.structs.astuple(claims_of(FACTS, nodes=3)))
    assert AFTER.survived


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({"nodes": 2}, "nodes_met"),
        ({"remote_hit_blocks": 0}, "blocks_came_from_a_peer"),
        ({"rounds": [ROUND, msgspec.structs.replace(ROUND, remote_blocks=0)]}, "blocks_came_from_a_peer"),
        ({"outputs_identical": False}, "outputs_identical"),
        ({"wrong_bytes": 1}, "no_wrong_bytes"),
        ({"survived_kill": False}, "survived_kill"),
        ({"ttft_mesh_ms": 1001}, "three_times_faster"),
    ],
)
def test_one_fact_that_is_off_breaks_one_claim(change, claim):
    claims = claims_of(msgspec.structs.replace(FACTS, **change), nodes=3)
    assert [name for name, held in msgspec.structs.asdict(claims).items() if not held] == [claim]


@pytest.mark.parametrize(
    "change",
    [
        {"lost": msgspec.structs.replace(COMPUTED, tokens=[5, 7])},
        {"orphan": msgspec.structs.replace(COMPUTED, tokens=[5])},
        {"lost": KEPT},
        {"orphan": KEPT},
        {"kept": COMPUTED},
        {"kept": msgspec.structs.replace(KEPT, sources=[msgspec.structs.replace(HERE, peer="c")])},
        {"detected_s": -1.0},
    ],
)
def test_a_kill_is_survived_only_if_all_answered_alike_from_the_right_place(change):
    assert not msgspec.structs.replace(AFTER, **change).survived


def test_medians_are_taken_apart():
    rounds = [
        msgspec.structs.replace(ROUND, ttft_recompute_ms=slow, ttft_mesh_ms=fast)
        for slow, fast in ((1, 9), (2, 7), (9, 8))
    ]
    assert medians(rounds) == (2, 8)


def test_the_table_says_what_went_wrong():
    table = dict(rows(msgspec.structs.replace(FACTS, outputs_identical=False, survived_kill=False)))
    assert table["B's output with and without the mesh"] == "DIFFERENT"
    assert table["after SIGKILL of node a"] == "FAILED"
    assert table["from"] == "node a, over tcp"
