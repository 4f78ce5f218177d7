"""Pictures of results, drawn without a display."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from sinotherm.core.arrays import FloatArray
from sinotherm.evaluation.demonstration import Acceleration, Comparison, Demonstration

__all__ = ["overview", "side_by_side"]

WINDOW_DEGC: Final = (37.0, 46.0)
"""Fixed window of temperatures for hyperthermia: never scaled to the data."""
ISOTHERMS: Final = ((41.0, "#7fe3ff"), (43.0, "#ffffff"))
"""Isotherms (°C) and their colours."""

_ERROR_DEGC: Final = 1.5
_INK: Final = "#1b2430"
_MUTED: Final = "#6b7684"
_CURVES: Final = (("T10", 2, "#c8323a"), ("T50", 1, "#d98a00"), ("T90", 0, "#2166ac"))

_STYLE: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
}


@contextmanager
def _page(path: Path, title: str, *, height_in: float, dpi: int) -> Iterator[Any]:
    """Yield a figure in the pictures' style; it is written when all is drawn."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(_STYLE):
        figure = plt.figure(figsize=(15.0, height_in), layout="constrained", facecolor="white")
        yield figure
        figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
        figure.savefig(path, dpi=dpi)
        plt.close(figure)


def overview(demonstration: Demonstration, path: Path, *, title: str) -> None:
    """Draw the demonstration on one page.

    Magnitude; temperature over it with its isotherms; error; curves of the tumour with their truth; predicted
    against found error; latencies.

    Parameters
    ----------
    path
        PNG file.
    title
        One line above it all.
    """
    shown = demonstration.comparison
    peak = int(np.nanargmax([np.nanmedian(frame[shown.tumour]) for frame in shown.truth]))
    crop = _crop(shown.body)
    with _page(path, title, height_in=8.3, dpi=110) as figure:
        halves: Any = figure.subfigures(2, 1, height_ratios=(1.0, 0.95))
        upper, lower = halves
        pictures = upper.subplots(1, 3)
        _magnitude(pictures[0], shown, crop)
        _temperature(upper, pictures[1], shown, peak, crop)
        _error(upper, pictures[2], shown, peak, crop)
        charts = lower.subplots(1, 3, width_ratios=(1.9, 1.0, 1.0))
        _curves(charts[0], shown, peak)
        _spread(charts[1], demonstration)
        _latency(charts[2], demonstration)


def side_by_side(found: Acceleration, path: Path, *, title: str) -> None:
    """Draw truth, gridding and PDUNet of an accelerated frame: magnitude, temperature, error.

    Parameters
    ----------
    path
        PNG file.
    title
        One line above it all.
    """
    gridding, network = found.comparisons["gridding"], found.comparisons["pdunet"]
    truth = replace(gridding, magnitude=found.magnitude, temperature=gridding.truth)
    columns = {"Truth": truth, "Gridding": gridding, "PDUNet": network}
    crop = _crop(gridding.body)
    with _page(path, title, height_in=12.0, dpi=90) as figure:
        axes = figure.subplots(3, 3)
        for place, (name, shown) in enumerate(columns.items()):
            upper, middle, lower = axes[:, place]
            _magnitude(upper, shown, crop)
            _temperature(figure, middle, shown, found.frame, crop)
            upper.set_title(f"{name}: magnitude")
            middle.set_title(f"{name}: temperature")
            if shown is truth:
                _bare(lower)
                continue
            _error(figure, lower, shown, found.frame, crop)
            figures = shown.figures()
            lower.set_title(f"{name}: error, RMSE {figures['tumour_rmse_degC']:.2f} °C in the tumour")


def _crop(body: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns of the body with a margin."""
    slices = []
    for axis in (1, 0):
        place = np.flatnonzero(body.any(axis=axis))
        margin = max(2, round(0.03 * body.shape[0]))
        slices.append(slice(max(0, place[0] - margin), min(body.shape[0], place[-1] + 1 + margin)))
    return slices[0], slices[1]


def _bare(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _outline(axes: Any, mask: np.ndarray, colour: str) -> None:
    axes.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.1, linestyles="dotted")


def _magnitude(axes: Any, shown: Comparison, crop: tuple[slice, slice]) -> None:
    axes.imshow(shown.magnitude[crop], cmap="gray", norm=_grey(shown.magnitude[crop], 1.0), interpolation="nearest")
    _outline(axes, shown.tumour[crop], "#ffd166")
    axes.set_title("Magnitude")
    axes.set_xlabel("dotted: tumour; gamma 0.6", color=_MUTED)
    _bare(axes)


def _temperature(figure: Any, axes: Any, shown: Comparison, peak: int, crop: tuple[slice, slice]) -> None:
    image, measured = shown.magnitude[crop], shown.temperature[peak][crop]
    axes.imshow(image, cmap="gray", norm=_grey(image, 1.5), interpolation="nearest")
    low, high = WINDOW_DEGC
    # Below 38.5 °C noise would hide the anatomy.
    alpha = np.clip((np.nan_to_num(measured, nan=low) - 38.0) / 1.0, 0.0, 0.9)
    drawn = axes.imshow(measured, cmap="inferno", vmin=low, vmax=high, alpha=alpha, interpolation="nearest")
    drawn.set_rasterized(True)
    _outline(axes, shown.tumour[crop], "#ffd166")
    smooth = _local_mean(measured)
    for level, colour in ISOTHERMS:
        if np.nanmax(smooth) > level:
            lines = axes.contour(smooth, levels=[level], colors=[colour], linewidths=1.6)
            axes.clabel(lines, fmt=f"{level:.0f} °C", fontsize=8)
    axes.set_title(f"Temperature at {shown.time_s[peak] / 60.0:.1f} min")
    axes.set_xlabel("isotherms 41 and 43 °C of the 5 × 5 mean", color=_MUTED)
    _bare(axes)
    mappable = _mappable("inferno", low, high)
    figure.colorbar(mappable, ax=axes, shrink=0.8, pad=0.02, label="°C", extend="max")


def _error(figure: Any, axes: Any, shown: Comparison, peak: int, crop: tuple[slice, slice]) -> None:
    error = np.where(shown.body, shown.temperature[peak] - shown.truth[peak], np.nan)[crop]
    axes.set_facecolor("#e9ecef")
    axes.imshow(error, cmap="RdBu_r", vmin=-_ERROR_DEGC, vmax=_ERROR_DEGC, interpolation="nearest")
    _outline(axes, shown.tumour[crop], _INK)
    axes.set_title("Error against the truth, the same frame")
    axes.set_xlabel("grey: no reading", color=_MUTED)
    _bare(axes)
    figure.colorbar(
        _mappable("RdBu_r", -_ERROR_DEGC, _ERROR_DEGC), ax=axes, shrink=0.8, pad=0.02, label="°C", extend="both"
    )


def _grey(image: FloatArray, headroom: float) -> Any:
    """Return the window of a magnitude image: its 99 % point times ``headroom``, gamma for the shade of the coils."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.6, vmin=0.0, vmax=max(headroom * float(np.percentile(image, 99.0)), 1e-30), clip=True)


def _mappable(cmap: str, low: float, high: float) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(norm=Normalize(low, high), cmap=cmap)


def _local_mean(values: FloatArray) -> FloatArray:
    """Return the mean over 5 × 5 pixels of what has a reading; NaN where most has none."""
    from scipy.ndimage import uniform_filter

    valid = np.isfinite(values)
    share = uniform_filter(valid.astype(np.float64), 5, mode="constant")
    mean = uniform_filter(np.where(valid, values, 0.0).astype(np.float64), 5, mode="constant")
    return np.where(share > 0.5, mean / np.maximum(share, 1e-9), np.nan)


def _curves(axes: Any, shown: Comparison, peak: int) -> None:
    measured, truth = shown.tumour_percentiles()
    minutes = shown.time_s / 60.0
    for name, column, colour in _CURVES:
        axes.plot(minutes, truth[:, column], color=colour, linewidth=1.4, alpha=0.9)
        axes.plot(minutes, measured[:, column], "o", color=colour, markersize=4.2, markeredgewidth=0.0)
        axes.annotate(
            name, (minutes[-1], truth[-1, column]), xytext=(6, 0), textcoords="offset points", color=colour, va="center"
        )
    for level, _ in ISOTHERMS:
        axes.axhline(level, color=_MUTED, linewidth=0.7, linestyle=(0, (2, 4)))
    if len(shown.heated):
        axes.axvspan(0.0, minutes[shown.heated[0]] - 0.5 * (minutes[1] - minutes[0]), color="#eef1f4", zorder=0)
        axes.text(0.012, 0.96, "baseline", transform=axes.transAxes, color=_MUTED, va="top")
    axes.axvline(minutes[peak], color=_MUTED, linewidth=0.7)
    note = "noise of the voxels spreads the measured T10 and T90"
    axes.text(0.985, 0.03, note, transform=axes.transAxes, color=_MUTED, ha="right")
    axes.set_title("Temperature of the tumour")
    axes.set_xlabel("time, min   (dots: measured, lines: truth, upright: the frame above)")
    axes.set_ylabel("°C")
    axes.set_xlim(0.0, minutes[-1] * 1.06)


def _spread(axes: Any, demonstration: Demonstration) -> None:
    shown, figures = demonstration.comparison, demonstration.figures
    error = (shown.temperature - shown.truth)[shown.heated][:, shown.tumour]
    error = error[np.isfinite(error)]
    sigma = figures["tumour_sigma_degC"]
    reach = max(4.0 * sigma, 1e-3)
    axes.hist(error, bins=41, range=(-reach, reach), density=True, color="#9fb8d3")
    x = np.linspace(-reach, reach, 201)
    axes.plot(x, np.exp(-0.5 * (x / sigma) ** 2) / (sigma * np.sqrt(2.0 * np.pi)), color=_INK, linewidth=1.3)
    axes.set_title("Error per voxel of the tumour")
    axes.set_xlabel("°C   (line: predicted)")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.text(
        0.98,
        0.97,
        f"RMSE {figures['tumour_rmse_degC']:.2f} °C\npredicted {sigma:.2f} °C\n"
        f"bias {figures['tumour_bias_degC']:+.3f} °C",
        transform=axes.transAxes,
        ha="right",
        va="top",
    )


def _latency(axes: Any, demonstration: Demonstration) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    latency, figures = demonstration.latency_ms, demonstration.figures["latency_ms"]
    low, high = max(0.1, 0.8 * float(latency.min())), 1.25 * float(latency.max())
    axes.hist(latency, bins=np.geomspace(low, high, 24), color="#8cc5a2")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.axvline(figures["p50"], color=_INK, linewidth=1.2)
    axes.axvline(figures["p95"], color=_INK, linewidth=1.2, linestyle="dashed")
    axes.set_title("Last readout to map sent")
    axes.set_xlabel("ms   (line: median, dashed: 95 %)")
    axes.set_ylabel("frames")
    axes.text(
        0.98,
        0.97,
        f"p50 {figures['p50']:.1f} ms\np95 {figures['p95']:.1f} ms",
        transform=axes.transAxes,
        ha="right",
        va="top",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2.0},
    )
