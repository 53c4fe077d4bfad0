"""Shapes and places of the phantom's organs."""

from __future__ import annotations

import numpy as np

from napari_s2dc.volumes.canvas import ORGAN, Canvas

__all__ = ["paint_torso"]

WHOLE = (slice(None), slice(None), slice(None))


def _power(values: np.ndarray) -> np.ndarray:
    """``|v| ** 2.5``, the superellipse of a trunk's outline."""
    return values * values * np.sqrt(np.abs(values))


def paint_torso(canvas: Canvas) -> None:
    """Paint a whole labelled torso, outside first; later organs lie over earlier ones."""
    outline = _paint_wall(canvas)
    diaphragm = _diaphragm(canvas)
    _paint_muscles(canvas)
    _paint_chest(canvas, outline, diaphragm)
    _paint_abdomen(canvas, outline, diaphragm)
    _paint_pelvis(canvas)
    _paint_spine(canvas)
    _paint_vessels(canvas)


def _paint_wall(canvas: Canvas) -> np.ndarray:
    """Fat, muscle wall and cavity; returns the trunk's outline function (1 on the skin)."""
    width = canvas.vary(150.0, 0.06)
    depth = canvas.vary(108.0, 0.08)
    waist = canvas.vary(0.08, 0.6)
    narrowing = 1 - waist * np.exp(-(((canvas.z + 30) / 60) ** 2))
    outline = _power(canvas.x / (width * narrowing)) + _power(canvas.y / (depth * narrowing))
    fat = canvas.vary(0.11, 0.45)
    canvas.paint(WHOLE, outline < 1, "subcutaneous fat", "fat")
    canvas.paint(WHOLE, outline < (1 - fat) ** 2.5, "muscle", "muscle")
    canvas.paint(WHOLE, outline < (0.88 - fat) ** 2.5, "inner fat", "fat")
    # In units of the cavity: 1 on its wall.
    return outline / np.float32((0.88 - fat) ** 2.5)


def _diaphragm(canvas: Canvas) -> np.ndarray:
    """Height of every voxel in mm above the two domes of the diaphragm."""
    right, left = canvas.vary(32.0, 0.3), canvas.vary(22.0, 0.3)
    drop = (canvas.y / 70) ** 2 * 25
    dome_right = right - ((canvas.x + 65) / 65) ** 2 * 18 - drop
    dome_left = left - ((canvas.x - 65) / 65) ** 2 * 18 - drop
    return canvas.z - np.maximum(dome_right, dome_left)


def _paint_muscles(canvas: Canvas) -> None:
    for side in (-1, 1):
        box, radius = canvas.ellipsoid((0.0, 84.0, side * 36.0), (400.0, 17.0, 27.0))
        canvas.paint(box, (radius < 1) & (canvas.labels[box] == 3), "muscle", "muscle")
        box, distance = canvas.tube(
            [(-20.0, 62.0, side * 27.0), (-70.0, 55.0, side * 38.0), (-150.0, 15.0, side * 62.0)],
            canvas.vary(15.0, 0.15),
        )
        canvas.paint(box, (distance < 1) & (canvas.labels[box] > 1), "muscle", "muscle")


def _paint_chest(canvas: Canvas, outline: np.ndarray, diaphragm: np.ndarray) -> None:
    top = canvas.vary(128.0, 0.05)
    # Lungs taper to the apex; the mediastinum lies between them.
    taper = np.clip(1 - ((canvas.z - 20) / (top - 20)) ** 3, 0.0, 1.0)
    taper[canvas.z < 20] = 1
    cavity = (outline < 0.93 * taper) & (diaphragm > 3) & (canvas.z < top)
    cavity &= (np.abs(canvas.x) > 32) | (canvas.y < 38)
    middle = canvas.vary(24.0, 0.15)
    canvas.paint(WHOLE, cavity & (canvas.x < -middle), "right lung", "lung")
    canvas.paint(WHOLE, cavity & (canvas.x > middle), "left lung", "lung")

    box, distance = canvas.tube([(160.0, 8.0, 0.0), (70.0, 22.0, 0.0)], 8.0)
    trachea = distance < 1
    for side in (-1.0, 1.0):
        branch_box, distance = canvas.tube([(71.0, 22.0, 0.0), (52.0, 24.0, side * 30.0)], 6.0)
        canvas.paint(branch_box, distance < 1, "trachea", "air")
    canvas.paint(box, trachea, "trachea", "air")

    place = (canvas.vary(46.0, 0.08), canvas.vary(-24.0, 0.2), canvas.vary(22.0, 0.25))
    size = canvas.vary(1.0, 0.1)
    box, radius = canvas.ellipsoid(place, (38 * size, 44 * size, 56 * size), tilt_deg=-28)
    canvas.paint(box, (radius < 1) & (diaphragm[box] > -6), "heart", "muscle")
    chambers = (((-2.0, -2.0, 16.0), 0.42), ((-4.0, -14.0, -14.0), 0.4), ((12.0, 14.0, 0.0), 0.4))
    for shift, share in chambers:
        chamber = (
            place[0] + shift[0] * size,
            place[1] + shift[1] * size,
            place[2] + shift[2] * size,
        )
        radii = (38 * share * size, 44 * share * size, 56 * share * size)
        inner_box, radius = canvas.ellipsoid(chamber, radii, tilt_deg=-28)
        inside = (radius < 1) & (canvas.labels[inner_box] == ORGAN["heart"])
        canvas.paint(inner_box, inside, "heart", "blood")

    # Ribs run from high at the back to low in front, inside the muscle wall.
    period, phase = canvas.vary(25.0, 0.06), canvas.random.uniform(0, 6.28)
    stripe = np.cos((canvas.z - 0.45 * canvas.y) * np.float32(2 * np.pi / period) + phase)
    shell = (outline > 1.04) & (outline < 1.26)
    ends = canvas.z > np.where(canvas.y < -20, -0.9 * (canvas.y + 20) - 25, -25)
    ribs = shell & (stripe > 0.1) & ends & (canvas.labels == ORGAN["muscle"])
    ribs &= (canvas.y > -62) | (np.abs(canvas.x) > 22)
    canvas.paint(WHOLE, ribs, "ribs", "cortical bone")
    canvas.paint(
        WHOLE, ribs & (outline > 1.09) & (outline < 1.2) & (stripe > 0.4), "ribs", "spongy bone"
    )
    sternum = shell & (canvas.y < 0) & (np.abs(canvas.x) < 17) & (canvas.z > 20)
    canvas.paint(WHOLE, sternum, "ribs", "spongy bone")


def _paint_abdomen(canvas: Canvas, outline: np.ndarray, diaphragm: np.ndarray) -> None:
    inside = (outline < 0.96) & (diaphragm < 0)

    def organ(
        name: str,
        tissue: str,
        centre: tuple[float, float, float],
        radii: tuple[float, float, float],
        *,
        tilt_deg: float = 0.0,
        inner: str | None = None,
        wall: float = 0.75,
    ) -> None:
        scale = canvas.vary(1.0, 0.1)
        shift = canvas.random.uniform(-5, 5, 3)
        place = (centre[0] + shift[0], centre[1] + shift[1], centre[2] + shift[2])
        sizes = (radii[0] * scale, radii[1] * scale, radii[2] * scale)
        box, radius = canvas.ellipsoid(place, sizes, tilt_deg=tilt_deg)
        here = (radius < 1) & inside[box]
        canvas.paint(box, here, name, tissue)
        if inner is not None:
            canvas.paint(box, here & (radius < wall), name, inner)

    _paint_bowel(canvas, inside)
    organ("stomach", "stomach wall", (2, -30, 54), (30, 38, 40), tilt_deg=30, inner="fluid")
    organ("spleen", "spleen", (2, 44, 82), (36, 38, 24), tilt_deg=15)
    organ("liver", "liver", (-2, -2, -68), (46, 76, 66), tilt_deg=12)
    organ("liver", "liver", (4, -42, -2), (21, 34, 62), tilt_deg=10)
    organ("gallbladder", "bile", (-38, -44, -42), (17, 12, 12))
    for name, side in (("right kidney", -1.0), ("left kidney", 1.0)):
        scale = canvas.vary(1.0, 0.1)
        place = (canvas.vary(-42 + 5 * side), canvas.vary(46.0), side * canvas.vary(56.0))
        fat_box, radius = canvas.ellipsoid(place, (43 * scale, 26 * scale, 27 * scale))
        canvas.paint(fat_box, (radius < 1) & inside[fat_box], "inner fat", "fat")
        box, radius = canvas.ellipsoid(
            place, (35 * scale, 19 * scale, 20 * scale), tilt_deg=-12 * side
        )
        canvas.paint(box, radius < 1, name, "kidney cortex")
        canvas.paint(box, radius < 0.5, name, "kidney medulla")
        hilum = (place[0], place[1] - 3, place[2] - side * 17 * scale)
        hilum_box, radius = canvas.ellipsoid(hilum, (11 * scale, 9 * scale, 14 * scale))
        canvas.paint(hilum_box, radius < 1, "inner fat", "fat")

    head = canvas.vary(-40.0, 0.1)
    box, distance = canvas.tube(
        [
            (head - 8, 2.0, -22.0),
            (head, -2.0, -8.0),
            (head + 6, 6.0, 20.0),
            (head + 16, 22.0, 52.0),
        ],
        canvas.vary(11.0, 0.12),
    )
    canvas.paint(box, (distance < 1) & inside[box], "pancreas", "pancreas")


def _paint_bowel(canvas: Canvas, inside: np.ndarray) -> None:
    """Colon as a frame and small bowel as loops within it."""
    radius = canvas.vary(17.0, 0.12)
    low, high = -104.0, canvas.vary(-48.0, 0.08)
    colon = [
        (low, 5.0, -88.0), (high, 0.0, -90.0), (high + 2, -42.0, -60.0), (high - 12, -62.0, 0.0),
        (high + 6, -38.0, 66.0), (high + 4, 5.0, 92.0), (low, 10.0, 88.0), (low - 22, 12.0, 62.0),
    ]  # fmt: skip
    loops: list[tuple[float, float, float]] = []
    for number, (height, front) in enumerate(
        ((-58.0, -12.0), (-74.0, -46.0), (-84.0, -2.0), (-104.0, -40.0), (-116.0, 0.0))
    ):
        for x in (-56.0, -20.0, 20.0, 56.0)[:: 1 if number % 2 == 0 else -1]:
            jitter = canvas.random.uniform(-8, 8, 3)
            loops.append((height + jitter[0], front + jitter[1], x + jitter[2]))
    for line, size in ((loops, 0.85 * radius), (colon, radius)):
        box, distance = canvas.tube(line, size)
        here = (distance < 1) & inside[box]
        canvas.paint(box, here, "bowel", "bowel wall")
        canvas.paint(box, here & (distance < 0.68), "bowel", "bowel content")
        # Gas gathers in front.
        gas = here & (distance < 0.6) & (np.sin(canvas.x[box] / 13 + canvas.z[box] / 17) > 0.75)
        canvas.paint(box, gas & (canvas.y[box] < -30), "bowel", "air")


def _paint_pelvis(canvas: Canvas) -> None:
    size = canvas.vary(1.0, 0.2)
    place = (-122.0, canvas.vary(-30.0, 0.2), canvas.random.uniform(-4, 4))
    box, radius = canvas.ellipsoid(place, (19 * size, 27 * size, 33 * size))
    canvas.paint(box, radius < 1, "bladder", "muscle")
    canvas.paint(box, radius < 0.8, "bladder", "urine")
    for side in (-1, 1):
        # A wing of the ilium: a bowl that opens to the middle.
        box, radius = canvas.ellipsoid((-128.0, 34.0, side * 56.0), (50.0, 60.0, 47.0))
        wing = (radius > 0.72) & (radius < 1) & (side * canvas.x[box] > 58) & (canvas.y[box] > -28)
        wing &= canvas.labels[box] > 1
        canvas.paint(box, wing, "hip bones", "cortical bone")
        canvas.paint(box, wing & (radius > 0.78) & (radius < 0.94), "hip bones", "spongy bone")


def _paint_spine(canvas: Canvas) -> None:
    width, depth = canvas.vary(21.0), canvas.vary(17.0)
    period = canvas.vary(28.0, 0.06)
    bend = 5 * np.sin(canvas.z / 60).astype(np.float32)  # lumbar and thoracic curve
    box = canvas.box(np.array([-200.0, 35.0, -45.0]), np.array([200.0, 115.0, 45.0]))
    z, x = canvas.z[box], canvas.x[box]
    y = canvas.y[box] - bend[box]
    body = (x / width) ** 2 + ((y - 58) / depth) ** 2
    height = np.abs(np.mod(z + 7, period) / period - 0.5)  # 0 mid vertebra, 0.5 mid disc
    bone = height < 0.4
    canvas.paint(box, (body < 1) & ~bone, "vertebrae", "disc")
    canvas.paint(box, (body < 1) & bone, "vertebrae", "cortical bone")
    canvas.paint(box, (body < 0.78) & (height < 0.34), "vertebrae", "spongy bone")
    canal = (x / 10) ** 2 + ((y - 82) / 9) ** 2
    arch = ((x / 17) ** 2 + ((y - 82) / 15) ** 2 < 1) & bone & (body >= 1)
    spinous = (np.abs(x) < 4.5) & (y > 90) & (y < 108) & (height < 0.27)
    across = (np.abs(x) < 38) & (np.abs(y - 80) < 5) & (height < 0.17)
    within = canvas.labels[box] > 1
    canvas.paint(box, (arch | spinous | across) & within, "vertebrae", "cortical bone")
    canvas.paint(box, canal < 1, "spinal cord", "fluid")
    canvas.paint(box, canal < 0.4, "spinal cord", "cord")


def _paint_vessels(canvas: Canvas) -> None:
    bore = canvas.vary(10.5, 0.12)
    descending = [
        (48.0, -8.0, 2.0), (84.0, -14.0, -6.0), (98.0, 2.0, 4.0), (88.0, 26.0, 16.0),
        (20.0, 30.0, 15.0), (-40.0, 24.0, 10.0), (-98.0, 28.0, 4.0),
    ]  # fmt: skip
    box, distance = canvas.tube(descending, bore)
    canvas.paint(box, distance < 1, "aorta", "blood")
    cava = [(46.0, 2.0, -16.0), (10.0, 18.0, -17.0), (-45.0, 27.0, -16.0), (-100.0, 32.0, -13.0)]
    box, distance = canvas.tube(cava, 0.95 * bore)
    canvas.paint(box, distance < 1, "inferior vena cava", "blood")
    for side in (-1.0, 1.0):
        iliac = [(-98.0, 28.0, 4.0), (-122.0, 26.0, side * 26.0), (-160.0, 5.0, side * 42.0)]
        box, distance = canvas.tube(iliac, 0.6 * bore)
        canvas.paint(box, distance < 1, "aorta", "blood")
