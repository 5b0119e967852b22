"""Figures of simulated runs: what is shown, as data, and the one place that draws it.

A figure is a row of charts that share nothing but a title and a note; the note has the command that made the data, so
that a picture that left its page can be made again. matplotlib is an extra, imported only where something is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

from p2pkv.errors import LocalUseError

SUFFIXES: Final = (".png", ".svg")
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
"""Okabe and Ito's palette: told apart by people who see fewer colours, and in print."""
_CHART_INCHES: Final = (5.2, 3.6)
_DOTS_PER_INCH: Final = 144
_BARS_WIDTH: Final = 0.8
_NAMES_LEVEL_MAX: Final = 30
"""Letters of all names below an axis that still fit side by side; longer ones are turned."""
_LEGEND_INSIDE_MAX: Final = 3
"""Entries of a legend that is still laid over the lines; a longer one stands beside them."""
_LEGEND_ABOVE_POINTS: Final = 20.0
"""Room between the title and the bars for a legend, which would hide some of them: bars fill what lines leave free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line, or one set of points or bars, with its entry in the legend."""

    x: Sequence[float]
    y: Sequence[float | None]
    """As many as `x`; None leaves a gap."""
    label: str = ""
    """Empty: no entry in the legend."""
    kind: Literal["line", "steps", "points", "bars"] = "line"
    """`line` marks its points; `steps` holds each value until the next, for counts over time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One pair of axes."""

    title: str
    x_label: str
    """With the unit."""
    y_label: str
    series: Sequence[Series]
    x_names: Sequence[str] = ()
    """Names for x = 0, 1, 2 ... instead of numbers."""
    x_log: bool = False
    y_log: bool = False
    events: Sequence[tuple[float, str]] = ()
    """Moments to mark: x and what happened."""
    aim: tuple[float, str] | None = None
    """A level to be compared with: y and what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Charts side by side."""

    title: str
    charts: Sequence[Chart]
    note: str = ""
    """One line below: the command, so that whoever finds the picture can make it again."""


def check_plot(path: Path) -> None:
    """Refuse what `write_figure` could not do, before minutes of simulation are spent on it.

    Raises:
        LocalUseError: the name's ending is unknown, the folder is not there, or matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise LocalUseError(f"plot is {str(path)!r}, must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise LocalUseError(f"plot is {str(path)!r}, and there is no folder {str(path.parent)!r}")
    if find_spec("matplotlib") is None:
        raise LocalUseError("matplotlib, which draws plots, is not installed", hint="pip install 'p2pkv[plots]'")


def write_figure(figure: Figure, path: Path) -> None:
    """Draw `figure` into `path`, PNG or SVG by its ending. Equal figures give equal files.

    Raises:
        LocalUseError: as `check_plot`.
    """
    check_plot(path)
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    # Without a salt the ids in an SVG file are random.
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "p2pkv"}):
        width, height = _CHART_INCHES
        canvas = Canvas(figsize=(width * len(figure.charts), height + 0.7), layout="constrained")
        FigureCanvasAgg(canvas)
        canvas.suptitle(figure.title, fontsize=12, fontweight="bold")
        for axes, chart in zip(canvas.subplots(1, len(figure.charts), squeeze=False)[0], figure.charts, strict=True):
            _draw(axes, chart)
        if figure.note:
            canvas.supxlabel(figure.note, fontsize=8, color="#555555", family="monospace", x=0.01, ha="left")
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        canvas.savefig(path, dpi=_DOTS_PER_INCH, metadata=metadata)


def _draw(axes: Any, chart: Chart) -> None:
    bars = [series for series in chart.series if series.kind == "bars"]
    for series, colour in zip(chart.series, _COLOURS * len(chart.series), strict=False):
        values = [float("nan") if y is None else y for y in series.y]
        match series.kind:
            case "line":
                axes.plot(series.x, values, color=colour, marker="o", markersize=3.5, label=series.label or None)
            case "steps":
                axes.step(series.x, values, color=colour, where="post", label=series.label or None)
            case "points":
                axes.plot(series.x, values, color=colour, marker="o", markersize=4, linestyle="", label=series.label)
            case "bars":
                width = _BARS_WIDTH / len(bars)
                left = -_BARS_WIDTH / 2 + (bars.index(series) + 0.5) * width
                axes.bar([x + left for x in series.x], values, width, color=colour, label=series.label or None)
    entries = sum(bool(series.label) for series in chart.series) + (chart.aim is not None)
    is_legend_above = bool(bars) and 0 < entries <= _LEGEND_INSIDE_MAX
    axes.set_title(chart.title, fontsize=11, pad=_LEGEND_ABOVE_POINTS if is_legend_above else None)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    if chart.x_names:
        turned = sum(map(len, chart.x_names)) > _NAMES_LEVEL_MAX
        rotation, align = (30, "right") if turned else (0, "center")
        axes.set_xticks(range(len(chart.x_names)), chart.x_names, rotation=rotation, ha=align)
    if chart.x_log:
        axes.set_xscale("log")
    if chart.y_log:
        axes.set_yscale("log")
    else:
        lowest = min((y for series in chart.series for y in series.y if y is not None), default=0.0)
        axes.margins(y=0.1)
        axes.set_ylim(bottom=0.0 if lowest >= 0 else None)
    if chart.aim is not None:
        axes.axhline(chart.aim[0], color="#444444", linewidth=1, linestyle="--", label=chart.aim[1])
    for at, what in chart.events:
        axes.axvline(at, color="#999999", linewidth=1, linestyle=":")
        axes.annotate(
            what,
            (at, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -3),
            textcoords="offset points",
            rotation=90,
            va="top",
            ha="left",
            fontsize=8,
            color="#666666",
        )  # fmt: skip - one thought
    if is_legend_above:
        axes.legend(
            frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=entries, borderaxespad=0
        )
    elif entries > _LEGEND_INSIDE_MAX:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    elif entries:
        axes.legend(frameon=False, fontsize=8)
