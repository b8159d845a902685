"""Drawing that all reports share.

matplotlib is used through its objects, without pyplot and without mathtext: nothing global is touched, so
pictures can be made in threads, and a user's backend and figures stay as they are.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from haljax.campaign import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/); wine red for their yellow, which white swallows.
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, SKY, ORANGE = "#CC79A7", "#56B4E9", "#E69F00"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, "#555555", "#882255")
INK, FAINT, GRID = "#222222", "#888888", "#E6E6E6"

DPI = 140
MANY = 1500  # points, above which a cloud is shown as a density


def canvas(width: float, height: float) -> Figure:
    """An empty figure, inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def tidy(ax: Axes, xlabel: str = "", ylabel: str = "") -> Axes:
    ax.set_facecolor("white")
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    ax.grid(color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK, labelsize=8, length=3, color=FAINT, which="both")
    ax.set_xlabel(xlabel, fontsize=9, color=INK)
    ax.set_ylabel(ylabel, fontsize=9, color=INK)
    return ax


def log_ticks(axis: Any) -> None:
    """A logarithmic axis labelled 0.1, 0.2, 0.5, 1, or more finely where it spans less than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = axis.get_view_interval()
    span = high / low
    subs = (1.0,) if span > 300 else (1.0, 2.0, 5.0) if span > 8 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def note(ax: Axes, x: float, y: float, text: str, colour: str = INK, **style: Any) -> None:
    """Text at a place in fractions of the axes; never read as mathematics, whatever a user's names hold."""
    defaults = {"fontsize": 8, "va": "top", "transform": ax.transAxes, "parse_math": False}
    ax.text(x, y, text, color=colour, **{**defaults, **style})


def _png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    buffer = BytesIO()
    # 256 colours: a third of the size, and looks the same.
    image.quantize(256, dither=Image.Dither.NONE).save(buffer, "png")
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, _png(figure))


def cloud(ax: Axes, x: np.ndarray, y: np.ndarray, colour: str, shape: str) -> None:
    """Points, or their density (logarithmic) where they are too many to be told apart."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    if len(x) <= MANY:
        ax.scatter(x, y, 14 if len(x) < 300 else 6, colour, marker=shape, alpha=0.6, linewidths=0, zorder=2)
        return
    pale = 0.5 + 0.5 * np.array(to_rgb(colour))
    shades = LinearSegmentedColormap.from_list("density", [tuple(pale), colour, "black"])
    cells = (70, 70 if ax.get_position().height > 0.35 else 30)
    extent = (*ax.get_xlim(), *ax.get_ylim())
    ax.hexbin(x, y, gridsize=cells, extent=extent, bins="log", cmap=shades, mincnt=1, linewidths=0, zorder=2)


def number(value: Any) -> float:
    return float("nan") if value is None else float(value)


class Picture(NamedTuple):
    """A data URI and the width in CSS pixels at which all pictures have one size of print."""

    source: str
    width: int


class Section(NamedTuple):
    """A picture with a heading, a caption and warnings; ``fold`` hides it until asked for."""

    title: str
    caption: str
    picture: Picture | None
    warnings: Sequence[str] = ()
    fold: bool = False


def embedded(path: Path) -> Picture:
    png = path.read_bytes()
    pixels = int.from_bytes(png[16:20], "big")  # from the header
    return Picture("data:image/png;base64," + b64encode(png).decode(), pixels * 100 // DPI)


def section(folder: Path, name: str, title: str, caption: str, make: Callable[[], Figure], *warnings: str) -> Section:
    """Draw a picture into ``folder`` and show it; one that cannot be made must not cost the others."""
    try:
        save(make(), folder / f"{name}.png")
    except ValueError as error:
        return Section(title, "", None, [f"This picture could not be made: {error}"])
    return Section(title, caption, embedded(folder / f"{name}.png"), warnings)
