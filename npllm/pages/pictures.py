"""Pictures of arrays and curves as HTML: inline SVG, and heat maps as small PNGs.

Each picture says in words what it shows. NaN and infinity are left out of every scale
and counted in the words. A picture stays small for any array: a heat map has at most
MOST_CELLS rows and columns, and a line at most 2 * MOST_BINS points.
"""

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from npllm.pages.packages import package

MOST_CELLS = 128  # rows and columns of a heat map; a larger array is averaged in boxes
MOST_BINS = 400  # intervals of a line chart, of which the lowest and highest values are drawn
HISTOGRAM_BINS = 41
BLUE, WHITE, RED, GREY = (33, 102, 172), (247, 247, 247), (178, 24, 43), (128, 128, 128)
WIDTH, HEIGHT, LEFT, BOTTOM, EDGE = 480, 220, 62, 38, 8  # of a chart, in units of its view box


def heat_map(array: Any, label: str) -> Any:
    """Return a picture of an array as an <img> (`Markup`): blue below 0, red above.

    array: of two dimensions at most; more are joined into rows. The scale is symmetric
    and ends at the largest absolute value. Elements that are not finite are grey.
    """
    array = np.asarray(array, np.float64)
    rows = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(1, -1)
    largest, lost = _largest(rows), int(rows.size - np.isfinite(rows).sum())
    words = f"{label}: heat map of {_times(array.shape)} values, from {-largest:.3g} (blue) to {largest:.3g} (red)"
    words += f"; {lost} are not finite (grey)" if lost else ""
    png = base64.b64encode(_png(_colours(_boxed(rows), largest))).decode()
    return (
        package("markupsafe")
        .Markup('<img class="heat-map" alt="{0}" title="{0}" src="data:image/png;base64,{1}">')
        .format(words, png)
    )


def histogram(array: Any, label: str) -> Any:
    """Return the distribution of an array's values as an SVG (`Markup`)."""
    values = np.asarray(array, np.float64).reshape(-1)
    finite = values[np.isfinite(values)]
    lost = len(values) - len(finite)
    words = f"{label}: histogram of {len(values)} values"
    if not len(finite):
        return _svg(f"{words}; none is finite", [])
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts, _ = np.histogram(finite, HISTOGRAM_BINS, (low, high))
    words += f" from {finite.min():.3g} to {finite.max():.3g}, mean {finite.mean():.3g}, std {finite.std():.3g}"
    words += f"; {lost} are not finite" if lost else ""
    place = _Scale(low, high, 0.0, float(counts.max()))
    width = (WIDTH - LEFT - EDGE) / HISTOGRAM_BINS
    bars = [
        f'<rect class="bar" x="{LEFT + i * width:.1f}" y="{place.y(n):.1f}" width="{width - 0.5:.1f}" '
        f'height="{HEIGHT - BOTTOM - place.y(n):.1f}"/>'
        for i, n in enumerate(counts)
        if n
    ]
    return _svg(words, [*place.axes("value", "count"), *bars])


def line_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    label: str,
    *,
    x_title: str = "",
    y_title: str = "",
) -> Any:
    """Return curves in one SVG with axes and a legend (`Markup`).

    series: name -> (x, y), both of one length. A point that is not finite breaks its
    curve. Of many points the lowest and the highest in each interval are drawn.
    """
    curves = {name: _drawable(np.asarray(x, float), np.asarray(y, float)) for name, (x, y) in series.items()}
    points = np.concatenate([np.empty((0, 2)), *curves.values()])
    points = points[np.isfinite(points).all(axis=1)]
    words = f"{label}: " + ", ".join(_in_words(name, y) for name, (_, y) in series.items())
    if not len(points):
        return _svg(words, [])
    (x_low, y_low), (x_high, y_high) = points.min(axis=0), points.max(axis=0)
    place = _Scale(x_low, x_high, y_low, y_high)
    drawn = [
        f'<path class="curve series-{number % 8}" d="{_path(curve, place)}"><title>{_escaped(name)}</title></path>'
        for number, (name, curve) in enumerate(curves.items())
    ]
    legend = "".join(
        f'<li><span class="key series-{number % 8}"></span>{_escaped(name)}</li>' for number, name in enumerate(curves)
    )
    chart = _svg(words, [*place.axes(x_title, y_title), *drawn])
    return (
        package("markupsafe")
        .Markup('<div class="chart">{}<ul class="legend">{}</ul></div>')
        .format(chart, package("markupsafe").Markup(legend))
    )


class _Scale:
    """Places values in a chart; the axes end at round numbers."""

    def __init__(self, x_low: float, x_high: float, y_low: float, y_high: float):
        self.x_low, self.x_high = (x_low, x_high) if x_high > x_low else (x_low - 0.5, x_high + 0.5)
        self.y_ticks = _round_numbers(y_low, y_high)
        self.y_low, self.y_high = min(y_low, self.y_ticks[0]), max(y_high, self.y_ticks[-1])

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - EDGE)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - BOTTOM - EDGE)

    def axes(self, x_title: str, y_title: str) -> list[str]:
        lines = [f'<path class="axis" d="M{LEFT} {EDGE}V{HEIGHT - BOTTOM}H{WIDTH - EDGE}"/>']
        for tick in self.y_ticks:
            lines.append(f'<path class="grid" d="M{LEFT} {self.y(tick):.1f}H{WIDTH - EDGE}"/>')
            lines.append(f'<text x="{LEFT - 6}" y="{self.y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
        for tick in _round_numbers(self.x_low, self.x_high):
            if self.x_low <= tick <= self.x_high:
                x, y = self.x(tick), HEIGHT - BOTTOM + 16
                lines.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{tick:g}</text>')
        middle = (HEIGHT - BOTTOM) / 2
        lines.append(f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{_escaped(x_title)}</text>')
        lines.append(
            f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{_escaped(y_title)}</text>'
        )
        return lines


def _round_numbers(low: float, high: float) -> list[float]:
    """About five round numbers from at most `low` to at least `high`."""
    span = high - low
    if not span > 0:
        low, high, span = low - 0.5, high + 0.5, 1.0
    power = 10.0 ** np.floor(np.log10(span / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 5)
    first, last = np.floor(low / step), np.ceil(high / step)
    return [float(n * step) for n in np.arange(first, last + 1)]


def _drawable(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The points to draw, (n, 2): of each interval the lowest and the highest one."""
    points = np.stack([x, y], axis=1)
    if len(points) <= 2 * MOST_BINS:
        return points
    kept = []
    for part in np.array_split(points, MOST_BINS):
        finite = np.flatnonzero(np.isfinite(part).all(axis=1))
        if len(finite):
            ends = {finite[np.argmin(part[finite, 1])], finite[np.argmax(part[finite, 1])]}
            kept += [part[i] for i in sorted(ends)]
    return np.array(kept).reshape(-1, 2)


def _path(curve: np.ndarray, place: _Scale) -> str:
    """The path of an SVG through the points; it breaks at those that are not finite."""
    parts, command = [], "M"
    for x, y in curve:
        if np.isfinite(x) and np.isfinite(y):
            parts.append(f"{command}{place.x(x):.1f} {place.y(y):.1f}")
            command = "L"
        else:
            command = "M"
    return "".join(parts)


def _in_words(name: str, y: Sequence[float]) -> str:
    finite = np.asarray(y, float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return f"{name} has no finite value"
    return f"{name} from {finite[0]:.4g} to {finite[-1]:.4g}, lowest {finite.min():.4g}, highest {finite.max():.4g}"


def _svg(words: str, parts: list[str]) -> Any:
    return (
        package("markupsafe")
        .Markup('<svg class="picture" role="img" viewBox="0 0 {} {}" aria-label="{}"><title>{}</title>{}</svg>')
        .format(WIDTH, HEIGHT, words, words, package("markupsafe").Markup("".join(parts)))
    )


def _escaped(text: str) -> str:
    return str(package("markupsafe").escape(text))


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "1"


def _largest(array: np.ndarray) -> float:
    finite = np.abs(array[np.isfinite(array)])
    return float(finite.max()) if finite.size else 0.0


def _boxed(rows: np.ndarray) -> np.ndarray:
    """The array, averaged in boxes if it has more than MOST_CELLS rows or columns."""
    for axis in (0, 1):
        if rows.shape[axis] > MOST_CELLS:
            edges = np.linspace(0, rows.shape[axis], MOST_CELLS + 1).astype(int)
            counts = np.diff(edges).reshape(-1, 1) if axis == 0 else np.diff(edges)
            rows = np.add.reduceat(rows, edges[:-1], axis=axis) / counts
    return rows


def _colours(rows: np.ndarray, largest: float) -> np.ndarray:
    """Return (height, width, 3) uint8: white at 0, blue below, red above; NaN grey."""
    finite = np.isfinite(rows)
    share = np.clip(np.where(finite, rows, 0.0) / (largest or 1.0), -1.0, 1.0)[..., None]
    end = np.where(share < 0, np.array(BLUE), np.array(RED))
    colours = np.array(WHITE) + np.abs(share) * (end - np.array(WHITE))
    return np.where(finite[..., None], colours, np.array(GREY)).round().astype(np.uint8)


def _png(pixels: np.ndarray) -> bytes:
    """A PNG file of (height, width, 3) uint8."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)  # 0: no filter
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
