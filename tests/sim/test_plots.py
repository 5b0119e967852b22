"""Figures: that they are drawn, that they are the same twice, and what is said where they cannot be."""

from pathlib import Path

import pytest
from matplotlib.axes import Axes

from p2pkv.errors import LocalUseError
from p2pkv.sim import plots
from p2pkv.sim.plots import Chart, Figure, Series, write_figure

EVERYTHING = Figure(
    title="Everything a chart can show",
    note="p2pkv sim nothing --seed 1",
    charts=[
        Chart(
            title="lines",
            x_label="time, s",
            y_label="members",
            series=[
                Series(x=[1, 2, 4], y=[1, None, 3], label="with a gap"),
                Series(x=[1, 2, 4], y=[3, 2, 2], label="steps", kind="steps"),
                Series(x=[1, 2, 4], y=[2, 2, 1], label="points", kind="points"),
            ],
            x_log=True,
            events=[(2, "a crash")],
            aim=(2.5, "aim"),
        ),
        Chart(
            title="bars",
            x_label="variant",
            y_label="false positives",
            series=[Series(x=[0, 1], y=[100, 1], label=name, kind="bars") for name in ("raised", "seen")],
            x_names=["swim", "a name that is longer than the others"],
            y_log=True,
        ),
    ],
)


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_equal_figures_are_equal_files(tmp_path: Path, suffix: str, begins: bytes) -> None:
    one, other = tmp_path / f"one{suffix}", tmp_path / f"other{suffix}"
    for path in (one, other):
        write_figure(EVERYTHING, path)
    assert one.read_bytes().startswith(begins)
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("bars", [1, 2, 3])
def test_the_legend_of_a_chart_hides_none_of_its_bars(
    bars: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Bars as high as the chart leave no free corner."""
    drawn: list[Axes] = []
    draw = plots._draw

    def keep(axes: Axes, chart: Chart) -> None:
        draw(axes, chart)
        drawn.append(axes)

    monkeypatch.setattr(plots, "_draw", keep)
    series = [Series(x=range(6), y=[100.0] * 6, label=f"measure {place}", kind="bars") for place in range(bars)]
    chart = Chart(title="all alike", x_label="variant", y_label="count", series=series)
    write_figure(Figure(title="Bars", charts=[chart]), tmp_path / "plot.png")
    (axes,) = drawn
    legend = axes.get_legend()
    assert legend is not None
    assert not any(legend.get_window_extent().overlaps(bar.get_window_extent()) for bar in axes.patches)
    assert not legend.get_window_extent().overlaps(axes.title.get_window_extent())


def test_what_cannot_be_drawn_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LocalUseError, match=r"must end in \.png or \.svg"):
        plots.check_plot(tmp_path / "plot.pdf")
    with pytest.raises(LocalUseError, match="there is no folder"):
        plots.check_plot(tmp_path / "nowhere" / "plot.png")
    monkeypatch.setattr(plots, "find_spec", lambda _: None)
    with pytest.raises(LocalUseError, match="matplotlib") as caught:
        plots.check_plot(tmp_path / "plot.png")
    assert caught.value.hint == "pip install 'p2pkv[plots]'"
