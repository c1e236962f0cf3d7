"""A map of named points as an inline SVG."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from npllm.pages.packages import package

WIDTH, HEIGHT, EDGE = 640, 440, 30


def scatter(places: np.ndarray, names: Sequence[str], groups: Sequence[str], label: str) -> Any:
    """Return the points as text at their places, coloured by group (`Markup`).

    places: (n, 2), finite. names, groups: of each point.
    """
    markup = package("markupsafe").Markup
    order = sorted(set(groups))
    low, high = places.min(axis=0), places.max(axis=0)
    share = (places - low) / np.where(high > low, high - low, 1.0)
    x, y = EDGE + share[:, 0] * (WIDTH - 2 * EDGE), HEIGHT - EDGE - share[:, 1] * (HEIGHT - 2 * EDGE)
    points = markup("").join(
        markup('<text class="series-{}" x="{:.1f}" y="{:.1f}">{}<title>{}: {}</title></text>').format(
            order.index(group) % 8, left, top, name, name, group
        )
        for left, top, name, group in zip(x, y, names, groups, strict=True)
    )
    legend = markup("").join(
        markup('<li><span class="key series-{}"></span>{}</li>').format(number % 8, group)
        for number, group in enumerate(order)
    )
    words = f"{label}: {len(names)} points in {len(order)} groups"
    return markup(
        '<div class="chart"><svg class="picture map" role="img" viewBox="0 0 {} {}" aria-label="{}">'
        "<title>{}</title>{}</svg>"
        '<ul class="legend">{}</ul></div>'
    ).format(WIDTH, HEIGHT, words, words, points, legend)
