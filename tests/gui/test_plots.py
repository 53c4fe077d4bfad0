from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest

from napari_s2dc.widgets.plots import Histogram, Scatter, inside_polygon


def test_inside_polygon_counts_crossings() -> None:
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10]], float)
    points = np.array([[5, 5], [11, 5], [-1, 5], [5, 11], [9.9, 0.1]])
    assert inside_polygon(points, square).tolist() == [True, False, False, False, True]
    notched = np.array([[0, 0], [10, 0], [10, 10], [5, 3], [0, 10]], float)
    assert inside_polygon(np.array([[5.0, 6.0], [1.0, 5.0]]), notched).tolist() == [False, True]


@pytest.fixture
def scatter(qtbot: Any) -> Scatter:
    widget = Scatter()
    qtbot.addWidget(widget)
    widget.resize(300, 200)
    x, y = np.meshgrid(np.arange(10.0), np.arange(10.0))
    widget.show_points(
        np.stack([x.ravel(), y.ravel()], 1), np.tile(np.uint8([200, 50, 50]), (100, 1))
    )
    widget.show()
    return widget


def drag(widget: Any, corners: list[tuple[float, float]]) -> None:
    places = [QPoint(round(x), round(y)) for x, y in corners]
    QTest.mousePress(widget, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, places[0])
    for place in places[1:]:
        QTest.mouseMove(widget, place)
    QTest.mouseRelease(
        widget, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, places[-1]
    )


def test_a_loop_selects_the_dots_in_it(scatter: Scatter, qtbot: Any) -> None:
    pixels = scatter.pixels()
    left, right = pixels[0, 0] - 3, pixels[4, 0] + 3
    with qtbot.waitSignal(scatter.lassoed) as got:
        drag(scatter, [(left, 1), (right, 1), (right, 199), (left, 199)])
    chosen = got.args[0]
    assert chosen.sum() == 50
    assert (scatter.pixels()[chosen][:, 0] < right).all()


def test_a_click_picks_the_nearest_dot_and_a_miss_clears(scatter: Scatter, qtbot: Any) -> None:
    x, y = scatter.pixels()[37]
    with qtbot.waitSignal(scatter.picked) as got:
        drag(scatter, [(x + 2, y - 1)])
    assert got.args == [37]
    scatter.show_points(np.array([[0.0, 0.0], [1.0, 1.0]]), np.zeros((2, 3), np.uint8))
    with qtbot.waitSignal(scatter.lassoed) as lost:
        drag(scatter, [(150, 100)])
    assert not lost.args[0].any()


def test_selected_dots_keep_their_colour_and_the_marked_one_has_a_ring(scatter: Scatter) -> None:
    def brightness(index: int) -> int:
        x, y = scatter.pixels()[index]
        return scatter.grab().toImage().pixelColor(int(x), int(y)).red()

    plain = brightness(99)
    scatter.select(np.arange(100) < 50)
    assert brightness(10) == plain
    assert brightness(99) != plain
    before = scatter.grab().toImage()
    scatter.mark(55)
    assert scatter.grab().toImage() != before


def test_histogram_draws_bars_and_mark(qtbot: Any) -> None:
    histogram = Histogram("similarity")
    qtbot.addWidget(histogram)
    histogram.resize(300, 130)
    empty = histogram.grab().toImage()
    histogram.show_counts(np.array([1, 4, 9]), np.array([0, 0.3, 0.6, 0.9]), [(0.9, "Sharpe 3.1")])
    full = histogram.grab().toImage()
    assert full != empty
    histogram.show_counts(np.array([1, 4, 9]), np.array([0, 0.3, 0.6, 0.9]), [])
    assert histogram.grab().toImage() != full
    histogram.clear()
    assert histogram.grab().toImage() == empty
