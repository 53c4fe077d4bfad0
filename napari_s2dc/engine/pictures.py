"""Pictures of what an encoder has learned, drawn without a screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_s2dc.engine.measures import Matches, ViewPair
from napari_s2dc.files import replace_atomically
from napari_s2dc.method.encoder import STRIDES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Curve",
    "MatchPicture",
    "colours_of",
    "draw_curves",
    "draw_embedding",
    "draw_matches",
    "match_picture",
    "section",
]

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
_SIDES = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I")}
_SIDES["sagittal"] = ("A", "P", "S", "I")

# One dark card that reads well on a light page and on a dark one.
_CARD, _TEXT, _FAINT = "#15181d", "#e8eaed", "#9aa3ad"
_RIGHT, _WRONG, _LINE = "#3ddc84", "#ff5c5c", "#6cb6ff"
_DOTS_PER_INCH = 130
_WIDTH_INCH = 9.0
_MARGIN_VOX = 5
_LINES = 24  # at most, of a picture of matches


@dataclass(frozen=True)
class Curve:
    """One line of a diagram.

    Parameters
    ----------
    title : str
        Title of its diagram, with the unit.
    steps, values : sequences of float
        Points.
    reference : float, optional
        Value of a dashed line to compare with.
    reference_name : str
        What the dashed line is.
    """

    title: str
    steps: Sequence[float]
    values: Sequence[float]
    reference: float | None = None
    reference_name: str = ""


@dataclass(frozen=True)
class MatchPicture:
    """The matches of one slice of tokens between two views.

    Parameters
    ----------
    title : str
        Which encoder made the matches.
    first, second : np.ndarray (Y, X)
        The slice in view 1 and view 2, 0 to 1.
    source, guess : np.ndarray (n,)
        Flat index of tokens of view 1, and of the most similar token of view 2.
    right : np.ndarray (n,)
        Boolean; the guess is the true partner.
    token_size_vox : int
        Side of a token in voxels.
    """

    title: str
    first: np.ndarray
    second: np.ndarray
    source: np.ndarray
    guess: np.ndarray
    right: np.ndarray
    token_size_vox: int


def section(array: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """Slice of a canonical volume the way radiologists look at it.

    Parameters
    ----------
    array : np.ndarray (Z, Y, X) or (Z, Y, X, 3)
        Axes to superior, posterior and patient left.
    plane : {"axial", "coronal", "sagittal"}
        Which slice.
    index : int
        Position along the axis that the plane cuts.

    Returns
    -------
    np.ndarray
        Rows from the top: anterior (axial) or superior; columns from the left: patient right, or
        anterior (sagittal).
    """
    if plane == "axial":
        return array[index]
    if plane == "coronal":
        return array[::-1, index]
    return array[::-1, :, index]


def colours_of(
    features: Sequence[Tensor],
    masks: Sequence[Tensor],
    shapes: Sequence[Sequence[int]],
    token_size_vox: int,
) -> list[np.ndarray]:
    """Colour voxels by the first three principal components of their features.

    Parameters
    ----------
    features : sequence of Tensor (C, tz, ty, tx)
        Token features of one or more scans by the same encoder; the components are found over all
        of them, so that equal colours mean similar features across the scans.
    masks : sequence of Tensor (tz, ty, tx)
        Boolean; tokens that count.
    shapes : sequence of (Z, Y, X)
        Voxels of each scan.
    token_size_vox : int
        Side of a token in voxels.

    Returns
    -------
    list of np.ndarray (Z, Y, X, 3)
        Red, green and blue from 0 to 1, interpolated between the centres of the tokens.
    """
    unit = [F.normalize(tokens, dim=0) for tokens in features]
    kept = torch.cat([tokens[:, mask] for tokens, mask in zip(unit, masks, strict=True)], dim=1)
    centre = kept.mean(1, keepdim=True)
    basis = torch.linalg.svd((kept - centre).double(), full_matrices=False).U[:, :3].float()
    # The sign of a component is arbitrary; fix it, so that equal weights give equal pictures.
    basis = basis * torch.sign(basis.gather(0, basis.abs().argmax(0, keepdim=True)))
    # Spread by rank: otherwise one outstanding organ leaves a single colour to all the others.
    levels = (basis.mT @ (kept - centre)).quantile(torch.linspace(0, 1, 101), dim=1).numpy()
    pictures = []
    for tokens, mask, shape in zip(unit, masks, shapes, strict=True):
        scores = torch.einsum("ck,czyx->kzyx", basis, tokens - centre[..., None, None]).numpy()
        ranks = [
            np.interp(score, levels[:, k], np.linspace(0, 1, 101)) for k, score in enumerate(scores)
        ]
        colour = torch.from_numpy(np.stack(ranks)).float()
        # Air takes no part in the interpolation, so that it does not bleed into the body.
        weighted = torch.cat([colour * mask, mask[None].float()])[None]
        # A fringe of the body can lie in tokens that are mostly air; it takes the next colour.
        near = F.avg_pool3d(weighted, 3, stride=1, padding=1)
        weighted = torch.where(mask, weighted, 0.01 * near)
        large = F.interpolate(
            weighted, scale_factor=float(token_size_vox), mode="trilinear", align_corners=False
        )[0]
        large = large[:, : shape[0], : shape[1], : shape[2]]
        blended = large[:3] / large[3:].clamp(min=1e-6)
        pictures.append(blended.permute(1, 2, 3, 0).clamp(0, 1).numpy())
    return pictures


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(width, height), facecolor=_CARD, layout=layout)
    FigureCanvasAgg(figure)  # not pyplot: no global state, no screen
    return figure


def _save(figure: Figure, path: Path) -> None:
    with replace_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DOTS_PER_INCH, facecolor=_CARD)


def _show(
    axes: Axes, picture: np.ndarray, spacing: tuple[float, float], plane: Plane | None = None
) -> None:
    """Show a slice with square millimetres, and with the names of its sides."""
    axes.imshow(
        picture,
        cmap="gray",
        vmin=0,
        vmax=1,
        aspect=spacing[0] / spacing[1],
        interpolation="bilinear",
    )
    axes.set_axis_off()
    if plane is None:
        return
    left, right, top, bottom = _SIDES[plane]
    for name, x, y, across, up in (
        (left, 0.02, 0.5, "left", "center"),
        (right, 0.98, 0.5, "right", "center"),
        (top, 0.5, 0.98, "center", "top"),
        (bottom, 0.5, 0.02, "center", "bottom"),
    ):
        axes.text(x, y, name, transform=axes.transAxes, ha=across, va=up, color=_FAINT, fontsize=8)


def draw_embedding(
    path: Path,
    image: np.ndarray,
    foreground: np.ndarray,
    rows: Sequence[tuple[str, np.ndarray]],
    spacing_mm: tuple[float, float, float],
    *,
    axial: int | None = None,
) -> None:
    """Draw a scan and its colours by encoder, in three planes through the middle of the body.

    Parameters
    ----------
    path : Path
        PNG to write.
    image : np.ndarray (Z, Y, X)
        Scan, 0 to 1.
    foreground : np.ndarray (Z, Y, X)
        Boolean; colours are shown there only.
    rows : sequence of (title, colours (Z, Y, X, 3))
        One row of pictures each, below the scan.
    spacing_mm : tuple of float
        Voxel spacing (z, y, x).
    axial : int, optional
        Axial slice in place of that through the middle.

    Raises
    ------
    S2DCError
        The file cannot be written.
    """
    box = tuple(
        slice(max(int(places.min()) - _MARGIN_VOX, 0), int(places.max()) + 1 + _MARGIN_VOX)
        for places in np.nonzero(foreground)
    )
    image, foreground = image[box], foreground[box]
    indices = [int(np.median(places)) for places in np.nonzero(foreground)]
    if axial is not None:
        indices[0] = axial - box[0].start
    in_plane = {
        "axial": (spacing_mm[1], spacing_mm[2]),
        "coronal": (spacing_mm[0], spacing_mm[2]),
        "sagittal": (spacing_mm[0], spacing_mm[1]),
    }
    grey = np.repeat(image[..., None], 3, axis=3)
    shown = [("Scan", grey)]
    background = np.asarray([int(_CARD[i : i + 2], 16) / 255 for i in (1, 3, 5)], dtype=np.float32)
    shown += [
        (title, np.where(foreground[..., None], colours[box], background))
        for title, colours in rows
    ]
    heights, widths = zip(*(section(image, p, 0).shape for p in PLANES), strict=True)
    sides_mm = [
        (high * in_plane[p][0], wide * in_plane[p][1])
        for p, high, wide in zip(PLANES, heights, widths, strict=True)
    ]
    # One scale for all pictures, and rows just as high as the tallest.
    scale = (_WIDTH_INCH - 0.4) / sum(wide for _, wide in sides_mm)
    row = scale * max(high for high, _ in sides_mm) + 0.1
    figure = _figure(_WIDTH_INCH, row * len(shown) + 0.3)
    grid = figure.subplots(
        len(shown), len(PLANES), squeeze=False, width_ratios=[wide for _, wide in sides_mm]
    )
    for line, (title, volume) in zip(grid, shown, strict=True):
        for axes, plane, index in zip(line, PLANES, indices, strict=True):
            _show(axes, section(volume, plane, index), in_plane[plane], plane)
        line[0].text(
            -0.06,
            0.5,
            title,
            transform=line[0].transAxes,
            rotation=90,
            ha="right",
            va="center",
            color=_TEXT,
            fontsize=11,
        )
    for axes, plane in zip(grid[0], PLANES, strict=True):
        axes.set_title(plane, color=_FAINT, fontsize=10)
    _save(figure, path)


def match_picture(title: str, pair: ViewPair, matches: Matches) -> MatchPicture:
    """Show the matches of the middle slice of tokens of two views.

    Parameters
    ----------
    title : str
        Which encoder made them.
    pair : ViewPair
        The views.
    matches : Matches
        Of them.
    """
    side = STRIDES[pair.stage]
    middle = len(pair.true_pairs) // 2
    plane = middle * side + side // 2
    asked = matches.asked[middle].nonzero()[:, 0]
    return MatchPicture(
        title=title,
        first=pair.first[plane].numpy(),
        second=pair.second[plane].numpy(),
        source=asked.numpy(),
        guess=matches.guess[middle][asked].numpy(),
        right=matches.right[middle][asked].numpy(),
        token_size_vox=side,
    )


def draw_matches(path: Path, pictures: Sequence[MatchPicture]) -> None:
    """Draw matched tokens of two views: right ones green, wrong ones red.

    Parameters
    ----------
    path : Path
        PNG to write.
    pictures : sequence of MatchPicture
        One row each, of the same tokens: all are marked by a square, some joined by a line.

    Raises
    ------
    S2DCError
        The file cannot be written.
    """
    from matplotlib.patches import ConnectionPatch, Rectangle

    figure = _figure(9.0, 4.7 * len(pictures))
    grid = figure.subplots(len(pictures), 2, squeeze=False)
    for (left, right), matches in zip(grid, pictures, strict=True):
        side = matches.token_size_vox
        columns = matches.first.shape[1] // side

        def corner(token: int, columns: int = columns, side: int = side) -> tuple[float, float]:
            return token % columns * side - 0.5, token // columns * side - 0.5

        _show(left, matches.first, (1.0, 1.0), "axial")
        _show(right, matches.second, (1.0, 1.0))
        count, total = int(matches.right.sum()), len(matches.right)
        left.set_title(
            f"{matches.title}: {count} of {total} right", color=_TEXT, fontsize=12, loc="left"
        )
        right.set_title("the same slice, moved, turned and scaled", color=_FAINT, loc="right")
        for token, hit in zip(matches.source, matches.right, strict=True):
            place = corner(int(token))
            colour = _RIGHT if hit else _WRONG
            square = (place[0] + 0.4, place[1] + 0.4), side - 0.8, side - 0.8
            left.add_patch(Rectangle(*square, fc=colour, ec="none", alpha=0.3))
        # Spread over the slice: every n-th token in reading order, the same for every encoder.
        chosen = np.unique(np.linspace(0, total - 1, min(_LINES, total)).astype(int))
        for index in sorted(chosen, key=lambda index: bool(matches.right[index])):  # green on top
            ends = [
                (x + side / 2, y + side / 2)
                for x, y in (corner(int(matches.source[index])), corner(int(matches.guess[index])))
            ]
            colour = _RIGHT if matches.right[index] else _WRONG
            figure.add_artist(
                ConnectionPatch(
                    ends[0],
                    ends[1],
                    left.transData,
                    right.transData,
                    color=colour,
                    lw=1.4 if matches.right[index] else 0.8,
                    alpha=0.9 if matches.right[index] else 0.7,
                )
            )
            for axes, end in zip((left, right), ends, strict=True):
                axes.plot(*end, "o", color=colour, markersize=3.5)
    _save(figure, path)


def draw_curves(path: Path, curves: Sequence[Curve]) -> None:
    """Draw how training went, one diagram a curve.

    Parameters
    ----------
    path : Path
        PNG to write.
    curves : sequence of Curve
        From left to right.

    Raises
    ------
    S2DCError
        The file cannot be written.
    """
    figure = _figure(9.0, 3.1)
    for axes, curve in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        axes.set_facecolor(_CARD)
        few = len(curve.steps) < 15
        axes.plot(curve.steps, curve.values, color=_LINE, marker="o" if few else "", markersize=4)
        if curve.reference is not None:
            axes.axhline(curve.reference, color=_FAINT, ls="--", lw=1)
            axes.annotate(
                curve.reference_name,
                (1, curve.reference),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 3),
                textcoords="offset points",
                ha="right",
                color=_FAINT,
                fontsize=8,
            )
        axes.set_title(curve.title, color=_TEXT, fontsize=11, loc="left")
        axes.set_xlabel("training step", color=_FAINT)
        axes.tick_params(colors=_FAINT)
        axes.grid(color=_FAINT, alpha=0.2)
        for spine in axes.spines.values():
            spine.set_visible(False)
    _save(figure, path)
