"""The figures of the experiments on failure detection, as data."""

from collections.abc import Sequence

from p2pkv.sim.loss import LossResult
from p2pkv.sim.plots import Chart, Figure, Series
from p2pkv.sim.threshold import ThresholdResult


def loss_figure(results: Sequence[LossResult], command: str) -> Figure:
    """Return what loss did, per protocol: verdicts on members that run."""
    places = list(range(len(results)))
    series = (
        Series(x=places, y=[result.verdicts for result in results], label="all", kind="bars"),
        Series(x=places, y=[result.on_healthy for result in results], label="on healthy members", kind="bars"),
    )
    chart = Chart(
        title="False dead verdicts",
        x_label="protocol",
        y_label="tables that turned dead",
        series=series,
        x_names=[result.protocol for result in results],
    )
    return Figure(title="Lost datagrams", charts=(chart,), note=command)


def threshold_figure(results: Sequence[ThresholdResult], command: str) -> Figure:
    """Return how soon stalled members were noticed, per variant."""
    places = list(range(len(results)))
    series = (
        Series(x=places, y=[result.first_p50_s for result in results], label="first, median", kind="bars"),
        Series(x=places, y=[result.full_p50_s for result in results], label="everybody, median", kind="bars"),
        Series(x=places, y=[result.first_p99_s for result in results], label="first, 99th percentile", kind="bars"),
    )
    chart = Chart(
        title="From the stall to the verdict",
        x_label="variant",
        y_label="seconds",
        series=series,
        x_names=[result.variant for result in results],
    )
    return Figure(title="Lifeguard, threshold experiment", charts=(chart,), note=command)
