"""How all plots look, and their way to a file: without pyplot, whose state threads would share."""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK = "#2b2f36"
FAINT = "#d9dde3"
BLUE, ORANGE, GREEN, RED, VIOLET, BROWN, PINK, GREY = (
    "#3b6fb6",
    "#e8893a",
    "#4c9f70",
    "#c8504b",
    "#8466b0",
    "#96745c",
    "#d47fb0",
    "#8a929c",
)
CYCLE = (BLUE, ORANGE, GREEN, RED, VIOLET, BROWN, PINK, GREY)

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a class name is a dollar
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": f"cycler(color={list(CYCLE)})",
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
}
DPI = 110


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of `width` by `height` inches; use it inside `style()`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style() -> AbstractContextManager[None]:
    """Returns a context in which figures get this look."""
    context: AbstractContextManager[None] = matplotlib.rc_context(STYLE)
    return context


def png_bytes(figure: Figure) -> bytes:
    """Returns the figure as PNG."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def save_png(figure: Figure, path: Path) -> Path:
    """Writes the figure as PNG, making the folder, and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_bytes(figure))
    return path


def shorten(name: str, length: int = 22) -> str:
    """Returns a name that fits a tick label."""
    return name if len(name) <= length else name[: length - 1] + "…"
