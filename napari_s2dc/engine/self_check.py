"""Match a scan with a random view of itself, where every true partner is known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from napari_s2dc.engine.aligned_match import match_aligned
from napari_s2dc.engine.consistency import in_whole_tokens, random_view
from napari_s2dc.engine.embed import embed_volume, normalised
from napari_s2dc.engine.embed_settings import EmbedSettings, region_of
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.encode import encode
from napari_s2dc.engine.match import Match, MatchSettings, match_embeddings
from napari_s2dc.engine.measures import foreground_tokens
from napari_s2dc.engine.progress import Progress, Steps
from napari_s2dc.errors import S2DCError
from napari_s2dc.method.affine import Affine3D
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.method.tokens import partners, token_centres
from napari_s2dc.volumes.preprocess import foreground_mask
from napari_s2dc.volumes.volume import Volume

__all__ = ["KnownView", "SelfCheck", "judge", "known_view", "self_check"]


@dataclass(frozen=True, eq=False)
class KnownView:
    """A random view of a scan and where every patch of the scan lies in it.

    Parameters
    ----------
    scan, view : Embedding
        On the same grid, in the same place.
    affine : Affine3D
        The map of the view; it shows at ``y`` what the scan has at ``affine.matrix @ y``.
    partner : Tensor (tokens,)
        Token of the view that shows the same place as each token of the scan; -1 without one.
    gone : Tensor (tokens,)
        Boolean; tissue whose place left the picture.
    place_vox : np.ndarray (tokens, 3)
        Where the centre of each token of the scan lies in the view, in voxels of the whole scan.
    image : np.ndarray (Z, Y, X)
        The view in the scan's own intensities, on the grid of what was embedded.
    """

    scan: Embedding
    view: Embedding
    affine: Affine3D
    partner: Tensor
    gone: Tensor
    place_vox: np.ndarray
    image: np.ndarray

    @property
    def volume(self) -> Volume:
        """The view as a scan."""
        affine = self.scan.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ self.scan.offset_vox
        return Volume(self.image, affine, name=self.view.name)


@dataclass(frozen=True, eq=False)
class SelfCheck:
    """How right a match with known truth is.

    Parameters
    ----------
    known : KnownView
        The truth.
    match : Match
        What was judged.
    asked : int
        Patches of tissue that have a partner.
    accuracy : float
        Share of them whose best partner is the true one.
    mean_mm, median_mm : float
        Distance of their best partners from the true places.
    gone : int
        Patches of tissue whose place left the picture.
    dustbin_found : float
        Share of those that were left without a partner; NaN when there are none.
    dustbin_right : float
        Share of all patches, asked and gone, for which partner or no partner was decided right.
    """

    known: KnownView
    match: Match
    asked: int
    accuracy: float
    mean_mm: float
    median_mm: float
    gone: int
    dustbin_found: float
    dustbin_right: float

    @property
    def sentence(self) -> str:
        """The figures in words."""
        words = (
            f"{100 * self.accuracy:.1f} % of {self.asked} patches found their true partner; error "
            f"{self.mean_mm:.2f} mm on average, {self.median_mm:.2f} mm median; partner or none "
            f"was decided right for {100 * self.dustbin_right:.1f} %"
        )
        if self.gone:
            words += f", {100 * self.dustbin_found:.0f} % of the {self.gone} that left the picture"
        return f"{words}."

    def as_dict(self) -> dict[str, float | int | None]:
        """Give the figures for JSON."""
        return {
            "patches": self.asked,
            "accuracy": self.accuracy,
            "mean_mm": self.mean_mm,
            "median_mm": self.median_mm,
            "left_the_picture": self.gone,
            "dustbin_found": None if np.isnan(self.dustbin_found) else self.dustbin_found,
            "dustbin_right": self.dustbin_right,
        }


def known_view(
    volume: Volume,
    encoder: SwinEncoder,
    settings: EmbedSettings,
    *,
    in_plane: bool = False,
    seed: int = 0,
    embedding: Embedding | None = None,
) -> Steps[KnownView]:
    """Embed a random view of a scan.

    Parameters
    ----------
    volume : Volume
        Scan with raw intensities.
    encoder, settings
        As for :func:`napari_s2dc.engine.embed.embed_volume`.
    in_plane : bool
        Turned and shifted within axial planes alone; otherwise also tilted and shifted along z.
    seed : int
        Of the view; the same seed gives the same one.
    embedding : Embedding, optional
        That of the scan with these settings, where it is already there.

    Yields
    ------
    Progress
        After every batch of windows.

    Returns
    -------
    KnownView
    """
    if embedding is None:
        embedding = yield from embed_volume(volume, encoder, settings)
    stride, grid = embedding.stride, embedding.grid
    generator = torch.Generator().manual_seed(seed)
    affine = random_view(generator, volume.spacing_mm, in_plane=in_plane)
    region = region_of(volume.shape, settings)

    def warped(image: np.ndarray, least: float = 0.0) -> np.ndarray:
        source = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)) - least
        result: np.ndarray = (affine.warp(in_whole_tokens(source, stride)) + least).numpy()
        z, y, x = embedding.shape
        return result[:z, :y, :x]

    tissue = foreground_mask(volume.array)
    # Half, because the mask's edge is blurred on the way.
    foreground = foreground_tokens(warped(tissue[region]) >= 0.5, stride)
    if not bool(foreground.any()):
        raise S2DCError(f"The view of {volume.name} shows no tissue.", "Take another seed.")
    turned = warped(normalised(volume, encoder, settings, tissue))
    features, _ = yield from encode(turned, encoder, settings, tissue=foreground)
    view = replace(embedding, features=features, foreground=foreground, name="random view")
    partner = partners(affine, grid, stride)
    own = embedding.foreground.flatten()
    there = foreground.flatten()
    partner = torch.where(own & there[partner.clamp(min=0)] & (partner >= 0), partner, -1)
    place = affine.inverse().map_points(token_centres(grid, stride)).numpy()
    half = np.asarray(grid) * stride / 2
    outside = ((place < -half) | (place >= half)).any(axis=1)
    raw = np.asarray(volume.array[region], dtype=np.float32)
    return KnownView(
        scan=embedding,
        view=view,
        affine=affine,
        partner=partner,
        gone=own & torch.from_numpy(outside),
        place_vox=place + half - 0.5 + np.asarray(embedding.offset_vox),
        # What comes in at the edge is as dark as the scan's darkest, which it has as air.
        image=warped(raw, float(raw.min())),
    )


def judge(known: KnownView, match: Match) -> SelfCheck:
    """Compare a match of ``known.scan`` with ``known.view`` with the truth.

    Parameters
    ----------
    known : KnownView
        The truth.
    match : Match
        Of the two, by any features.

    Raises
    ------
    S2DCError
        No patch of tissue has a partner.
    """
    shape = known.scan.grid
    pairs = match.pairs()
    token_a = np.ravel_multi_index(tuple(pairs.token_a.T), shape)
    token_b = np.ravel_multi_index(tuple(pairs.token_b.T), shape)
    partner = known.partner.numpy()[token_a]
    asked = partner >= 0
    if not asked.any():
        raise S2DCError(
            f"No patch of {known.scan.name} has a partner in the view.",
            "Use an earlier --stage, whose patches are smaller.",
        )
    linear, origin = known.scan.affine[:3, :3], known.scan.affine[:3, 3]
    truth_mm = known.place_vox[token_a] @ linear.T + origin
    error = np.linalg.norm(pairs.mm_b[asked] - truth_mm[asked], axis=1)
    unmatched, _ = match.unmatched()
    binned = unmatched.flatten().numpy()[token_a] > 0.5
    gone = known.gone.numpy()[token_a]
    decided = np.concatenate([~binned[asked], binned[gone]])
    return SelfCheck(
        known=known,
        match=match,
        asked=int(asked.sum()),
        accuracy=float((token_b[asked] == partner[asked]).mean()),
        mean_mm=float(error.mean()),
        median_mm=float(np.median(error)),
        gone=int(gone.sum()),
        dustbin_found=float(binned[gone].mean()) if gone.any() else float("nan"),
        dustbin_right=float(decided.mean()),
    )


def self_check(
    volume: Volume,
    encoder: SwinEncoder,
    settings: EmbedSettings,
    *,
    matching: MatchSettings | None = None,
    align: bool = True,
    in_plane: bool = False,
    seed: int = 0,
    embedding: Embedding | None = None,
) -> Steps[SelfCheck]:
    """Match a scan with a random view of itself and judge the match.

    Parameters
    ----------
    volume, encoder, settings, in_plane, seed, embedding
        As for :func:`known_view`.
    matching : MatchSettings, optional
        Defaults when left out.
    align : bool
        Whether both are matched again in one pose, as
        :func:`napari_s2dc.engine.aligned_match.match_aligned` does.

    Yields
    ------
    Progress
        After every batch of windows, and before the match.

    Returns
    -------
    SelfCheck

    Raises
    ------
    S2DCError
        The scan has no tissue, or none of it is in the view.
    """
    known = yield from known_view(
        volume, encoder, settings, in_plane=in_plane, seed=seed, embedding=embedding
    )
    yield Progress(0, 1, "plans")
    if not align:
        return judge(known, match_embeddings(known.scan, known.view, matching))
    images = (volume, known.volume)
    match = yield from match_aligned((known.scan, known.view), images, encoder, settings, matching)
    return judge(known, match)
