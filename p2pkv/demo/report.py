"""What the demo found out, which of its claims that bears out, and how both are shown."""

from collections.abc import Sequence
from statistics import median
from typing import Final

import msgspec

from p2pkv.demo.lines import Answer

RATIO_CLAIMED: Final = 3.0


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """B answers once without and once with the mesh, its prompt under a salt of its own: every round is a real fetch."""

    ttft_recompute_ms: float
    ttft_mesh_ms: float
    fetch_ms: float
    build_ms: float
    remote_blocks: int
    remote_tokens: int
    remote_bytes: int
    wrong_bytes: int
    identical: bool


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was measured; the fields of the JSON document, in order, before `claims`."""

    nodes: int
    """Nodes that each list all of them as alive."""
    model: str
    dtype: str
    prompt_tokens: int
    block_tokens: int
    block_bytes: int
    outputs_identical: bool
    remote_hit_blocks: int
    """Of the last round, as all of `remote_hit_tokens` to `transport`."""
    remote_hit_tokens: int
    fetched_bytes: int
    peer: str
    transport: str
    ttft_recompute_ms: float
    """Median over the rounds, as `ttft_mesh_ms`."""
    ttft_mesh_ms: float
    ratio: float
    wrong_bytes: int
    """Over all rounds: bytes of blocks that are not in B's tensors what they were in A's."""
    survived_kill: bool
    failure_detected_s: float
    """From the SIGKILL until node b lists a as dead; negative if it never did."""
    rounds: list[Round]
    answers: dict[str, str]
    """What was said, by who said it when."""


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo says a mesh does. The exit code is 0 only if all of it held."""

    nodes_met: bool
    blocks_came_from_a_peer: bool
    outputs_identical: bool
    no_wrong_bytes: bool
    survived_kill: bool
    three_times_faster: bool
    """Time to first token with the mesh is at most a third of recomputing, medians of the same run."""


class AfterKill(msgspec.Struct, frozen=True, kw_only=True):
    """The third question, after node a's daemon was killed."""

    lost: Answer
    """B, when the blocks were nowhere but on a: it computes."""
    kept: Answer
    """B, with the copies it fetched before."""
    orphan: Answer
    """A's engine, without a daemon: it computes."""
    detected_s: float
    members: dict[str, str]

    @property
    def survived(self) -> bool:
        """Whether all three answered, alike, from where they should have, and the failure was noticed."""
        alike = self.lost.tokens == self.kept.tokens == self.orphan.tokens
        placed = self.lost.hit_blocks == 0 and self.orphan.hit_blocks == 0 and self.kept.hit_blocks > 0
        return alike and placed and all(not source.peer for source in self.kept.sources) and self.detected_s >= 0


def claims_of(facts: Facts, *, nodes: int) -> Claims:
    """Return which claims `facts` bear out."""
    return Claims(
        nodes_met=facts.nodes == nodes,
        blocks_came_from_a_peer=facts.remote_hit_blocks > 0 and all(one.remote_blocks > 0 for one in facts.rounds),
        outputs_identical=facts.outputs_identical,
        no_wrong_bytes=facts.wrong_bytes == 0,
        survived_kill=facts.survived_kill,
        three_times_faster=facts.ttft_mesh_ms * RATIO_CLAIMED <= facts.ttft_recompute_ms,
    )


def medians(rounds: Sequence[Round]) -> tuple[float, float]:
    """Return the median times to first token, without and with the mesh, milliseconds."""
    return median(one.ttft_recompute_ms for one in rounds), median(one.ttft_mesh_ms for one in rounds)


def rows(facts: Facts) -> list[tuple[str, str]]:
    """Return the table for people."""
    times = f"{len(facts.rounds)} rounds"
    fetch, build = (median(getattr(one, name) for one in facts.rounds) for name in ("fetch_ms", "build_ms"))
    return [
        ("model", f"{facts.model}, {facts.dtype}, prompt of {facts.prompt_tokens} tokens"),
        ("time to first token, recomputed", f"{facts.ttft_recompute_ms:.0f} ms (median of {times})"),
        ("time to first token, with the mesh", f"{facts.ttft_mesh_ms:.0f} ms (fetch {fetch:.0f}, cache {build:.0f})"),
        ("ratio", f"{facts.ratio:.1f} times faster"),
        ("fetched", f"{facts.remote_hit_blocks} blocks of {facts.block_tokens} tokens, {facts.fetched_bytes / 1e6:.1f} MB"),
        ("from", f"node {facts.peer}, over {facts.transport}"),
        ("B's output with and without the mesh", "identical" if facts.outputs_identical else "DIFFERENT"),
        ("wrong bytes, A's tensors against B's", str(facts.wrong_bytes)),
        ("after SIGKILL of node a", "every engine answered" if facts.survived_kill else "FAILED"),
        ("failure detected after", f"{facts.failure_detected_s:.1f} s"),
        *((f"said {name}", text) for name, text in facts.answers.items()),
    ]  # fmt: skip
