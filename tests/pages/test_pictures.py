"""Pictures say what they show, and stay small for any array."""

import base64
import re
import struct
import zlib

import numpy as np
import pytest

from npllm.pages.pictures import MOST_CELLS, heat_map, histogram, line_chart


def pixels(html: str) -> np.ndarray:
    """The colours of a heat map, (height, width, 3), read from its PNG."""
    png = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    width, height = struct.unpack(">II", png[16:24])
    start = png.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", png[start - 8 : start - 4])
    lines = np.frombuffer(zlib.decompress(png[start : start + length]), np.uint8).reshape(height, 1 + 3 * width)
    return lines[:, 1:].reshape(height, width, 3).astype(int)


def test_a_heat_map_is_red_above_blue_below_white_at_0_and_grey_for_nan():
    html = heat_map([[2.0, -2.0, 0.0], [1.0, np.nan, np.inf]], "W")
    (red, blue, white), (pink, *grey) = pixels(html)
    assert red[0] > red[2] + 100
    assert blue[2] > blue[0] + 100
    assert white.min() > 240
    assert red[1] < pink[1] < white[1]
    assert [list(colour) for colour in grey] == [[128] * 3] * 2
    assert 'alt="W: heat map of 2 x 3 values, from -2 (blue) to 2 (red); 2 are not finite (grey)"' in html


def test_a_large_heat_map_is_averaged():
    array = np.zeros((1000, 700))
    array[:500] = 1.0
    found = pixels(heat_map(array, "x"))
    assert found.shape == (MOST_CELLS, MOST_CELLS, 3)
    assert (found[: MOST_CELLS // 2 - 1] == found[0, 0]).all()
    assert (found[MOST_CELLS // 2 + 1 :] == found[-1, 0]).all()
    assert found[0, 0, 1] < 100 < found[-1, 0, 1]


@pytest.mark.parametrize("array", [3.0, np.zeros(0), np.full(4, np.nan), np.zeros((2, 3, 4))])
def test_any_array_has_a_picture(array):
    assert "heat map" in heat_map(array, "x")
    assert "histogram" in histogram(array, "x")


def test_a_histogram_has_every_finite_value_in_a_bar():
    html = histogram([0.0, 0.0, 0.0, 1.0, np.nan], "x")
    heights = [float(height) for height in re.findall(r'class="bar".*?height="([\d.]+)"', html)]
    assert len(heights) == 2
    assert heights[0] == pytest.approx(3 * heights[1], rel=0.01)
    assert "5 values from 0 to 1, mean 0.25, std 0.433; 1 are not finite" in html


def test_a_curve_of_a_million_steps_is_small_and_keeps_its_spike():
    y = np.zeros(10**6)
    y[654_321], y[123] = 50.0, np.nan
    html = line_chart({"loss": (np.arange(10**6), y)}, "Loss", x_title="step")
    assert len(html) < 20_000
    assert "highest 50" in html
    curve = re.search(r'class="curve series-0" d="([^"]+)"', html)[1]
    heights = [float(height) for height in re.findall(r"[ML][\d.]+ ([\d.]+)", curve)]
    assert min(heights) < 15 < np.median(heights)


def test_a_value_that_is_not_finite_breaks_the_curve():
    html = line_chart({"a": ([1, 2, 3, 4], [1.0, np.nan, 2.0, np.inf])}, "x")
    assert re.search(r'd="([^"]+)"><title>a', html)[1].count("M") == 2


@pytest.mark.parametrize("y", [[], [np.nan], [5.0], [5.0, 5.0], [1e300, -1e300]])
def test_any_curve_has_a_chart(y):
    html = line_chart({"<b>": (range(len(y)), y)}, "<script>")
    assert "<script>" not in html
    assert "<b>" not in html
    assert "nan" not in re.sub(r"aria-label=.*?</title>", "", html)
