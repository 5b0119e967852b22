"""What the results of the verbs look like: one function per verb, from its result to a `Figure`."""

from collections.abc import Sequence

from p2pkv.mesh.members import MemberState
from p2pkv.sim.clock import SECOND_US
from p2pkv.sim.detection import Detection
from p2pkv.sim.lifeguard import VariantResult
from p2pkv.sim.members import MembersOptions, MembersResult
from p2pkv.sim.plots import Chart, Figure, Series
from p2pkv.sim.splits import Split
from p2pkv.sim.turnover import TurnoverRow
from p2pkv.sim.world import Change, id_of

_USABLE = (MemberState.ALIVE, MemberState.SUSPECT)


class Timeline:
    """Listens to a run of `members` for its figure."""

    def __init__(self) -> None:
        self._present: set[tuple[int, int]] = set()
        self.known: list[tuple[float, int]] = []
        """(seconds, pairs that count on one another), at each change."""
        self.doubts: list[tuple[float, int, int, int]] = []
        """(seconds, who, whom, suspect or dead)."""

    def __call__(self, change: Change) -> None:
        """Take a change of belief."""
        at_s, pair = change.at_us / SECOND_US, (change.observer, change.subject)
        (self._present.add if change.state in _USABLE else self._present.discard)(pair)
        self.known.append((at_s, len(self._present)))
        if change.state in {MemberState.SUSPECT, MemberState.DEAD}:
            self.doubts.append((at_s, *pair, change.state))


def members_figure(options: MembersOptions, result: MembersResult, timeline: Timeline) -> Figure:
    """Draw how soon everybody knows everybody, and how soon everybody knows of the crash."""
    crash_s, pairs = options.duration_s / 3, options.nodes * (options.nodes - 1)
    met = [(at, count / pairs) for at, count in timeline.known if at < crash_s]

    def noticed(state: MemberState) -> list[tuple[float, float]]:
        """Return (seconds from the crash, share of members that had come to that belief)."""
        firsts: dict[int, float] = {}
        for at, who, whom, what in timeline.doubts:
            if at >= crash_s and id_of(whom) == result.crashed and what == state:
                firsts.setdefault(who, at - crash_s)
        times = sorted(firsts.values())
        return [(0.0, 0.0), *((at, (place + 1) / (options.nodes - 1)) for place, at in enumerate(times))]

    settled = min(crash_s, 2 * met[-1][0] if met else crash_s)
    return Figure(
        title=f"{options.nodes} nodes meet, and one dies",
        note=options.command(),
        charts=[
            Chart(
                title="meeting",
                x_label="time from the first start, s",
                y_label="share of pairs that know each other",
                series=[_steps([(0.0, 0.0), *met, (settled, met[-1][1] if met else 0.0)])],
            ),
            Chart(
                title="the crash",
                x_label="time from the crash, s",
                y_label="share of members that have noticed",
                series=[
                    _steps(noticed(MemberState.SUSPECT), "suspect the node"),
                    _steps(noticed(MemberState.DEAD), "hold it for dead"),
                ],
            ),
        ],
    )


def detection_figure(found: Sequence[Detection], *, nodes: int, note: str) -> Figure:
    """Draw how many crashes are noticed after how long, and how far the first and the last are apart."""
    first = sorted(one.first_s for one in found if one.first_s is not None)
    last = sorted(one.last_s for one in found if one.last_s is not None)
    spread = sorted(one.last_s - one.first_s for one in found if one.first_s is not None and one.last_s is not None)
    shares = [(place + 1) / len(found) for place in range(len(found))]
    return Figure(
        title=f"{len(found)} crashes among {nodes} nodes",
        note=note,
        charts=[
            Chart(
                title="noticed",
                x_label="time from the crash, s",
                y_label="share of crashes",
                series=[
                    _steps([(0.0, 0.0), *zip(first, shares, strict=False)], "by the first member"),
                    _steps([(0.0, 0.0), *zip(last, shares, strict=False)], "by the last"),
                ],
            ),
            Chart(
                title="how long the news takes",
                x_label="from the first member to the last, ms",
                y_label="share of crashes",
                series=[_steps([(0.0, 0.0), *zip([1000 * one for one in spread], shares, strict=False)])],
            ),
        ],
    )


def lifeguard_figure(results: Sequence[VariantResult], *, nodes: int, note: str) -> Figure:
    """Draw what each variant gets wrong, and what it costs, beside plain SWIM."""
    names, places = [result.variant for result in results], list(range(len(results)))

    def bars(label: str, values: Sequence[float | None]) -> Series:
        return Series(x=places, y=values, label=label, kind="bars")

    return Figure(
        title=f"Slow members among {nodes}: plain SWIM and each part of Lifeguard",
        note=note,
        charts=[
            Chart(
                title="false positives",
                x_label="",
                y_label="count over the grid",
                x_names=names,
                y_log=True,
                series=[
                    bars("raised", [result.raised_fp or None for result in results]),
                    bars("seen by healthy members", [result.seen_fp or None for result in results]),
                ],
            ),
            Chart(
                title="traffic",
                x_label="",
                y_label="in units of plain SWIM's",
                x_names=names,
                series=[
                    bars("messages", [result.message_ratio for result in results]),
                    bars("bytes", [result.byte_ratio for result in results]),
                ],
            ),
            Chart(
                title="real crashes",
                x_label="",
                y_label="time to notice, s",
                x_names=names,
                series=[
                    bars("median", [result.crash_detection_p50_s for result in results]),
                    bars("longest", [result.crash_detection_max_s for result in results]),
                ],
            ),
        ],
    )


def churn_figure(rows: Sequence[TurnoverRow], *, nodes: int, note: str) -> Figure:
    """Draw what coming and going does to beliefs, to the time to notice, and to traffic."""
    x = [row.ended_per_minute for row in rows]

    def chart(title: str, y_label: str, *series: tuple[str, list[float | None]], y_log: bool = False) -> Chart:
        drawn = [Series(x=x, y=y, label=label) for label, y in series]
        return Chart(title=title, x_label="processes that end per minute", y_label=y_label, series=drawn, y_log=y_log)

    return Figure(
        title=f"Churn among {nodes} nodes",
        note=note,
        charts=[
            chart("beliefs that are behind", "% of all beliefs", ("", [100 * row.stale_share for row in rows])),
            chart(
                "time until it is noticed, median",
                "s",
                ("a crash, by the first member", [row.detection_p50_s for row in rows]),
                ("a new life, by any member", [row.return_p50_s for row in rows]),
                y_log=True,
            ),
            chart("traffic", "kB/s per node", ("", [row.bytes_per_node_s / 1000 for row in rows])),
        ],
    )


def partition_figure(splits: Sequence[Split], *, nodes: int, note: str) -> Figure:
    """Draw how the two sides lose each other and find each other, and how long the latter takes."""
    rows = [split.row for split in splits]
    return Figure(
        title=f"{nodes} nodes cut in two for a time",
        note=note,
        charts=[
            Chart(
                title="lost and found",
                x_label="time from the cut, s",
                y_label="share of pairs across it that believe",
                series=[_steps(split.bridged, f"cut for {split.row.lasts_s:g} s") for split in splits],
            ),
            Chart(
                title="healing",
                x_label="the cut lasted, s",
                y_label="time from the repair, s",
                x_names=[f"{row.lasts_s:g}" for row in rows],
                series=[
                    Series(x=range(len(rows)), y=[row.meet_s for row in rows], label="the first two meet", kind="bars"),
                    Series(x=range(len(rows)), y=[row.heal_s for row in rows], label="all are one mesh", kind="bars"),
                ],
            ),
        ],
    )


def _steps(points: Sequence[tuple[float, float]], label: str = "") -> Series:
    return Series(x=[x for x, _ in points], y=[y for _, y in points], label=label, kind="steps")
