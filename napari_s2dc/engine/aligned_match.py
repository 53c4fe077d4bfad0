"""Further looks at two scans: scan A is turned into the pose of scan B and embedded again.

An encoder tells places apart by what lies in which direction, so a patch that is turned looks less
like itself, and its neighbour that is turned less looks better than it should: of scans turned
against each other by 20 degrees, the pairs of a first plan follow a map that turns by about half of
that. Later plans are made of features of equal orientation and size of voxels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from napari_s2dc.engine.embed import normalised
from napari_s2dc.engine.embed_settings import EmbedSettings, region_of
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.encode import encode, out_of_memory
from napari_s2dc.engine.match import Match, MatchSettings, match_embeddings, voxels_of
from napari_s2dc.engine.match_checks import assess
from napari_s2dc.engine.measures import foreground_tokens
from napari_s2dc.engine.progress import Progress, Steps
from napari_s2dc.engine.registration import Registration, RegistrationSettings, register
from napari_s2dc.engine.scan_agreement import sample
from napari_s2dc.errors import S2DCError
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.preprocess import foreground_mask, resample_to, smoothed
from napari_s2dc.volumes.volume import Volume

__all__ = ["embed_in_pose", "match_aligned"]

_LOOKS = (
    RegistrationSettings(affine_steps=30, bending_steps=0, feature_weight=1.0),
    RegistrationSettings(affine_steps=0, fine_affine_steps=30, bending_steps=0, feature_weight=1.0),
)
"""How the map is refined before each further look: features see far, a fine grid exactly."""
_LEAST_CORRELATION = 0.45
"""Below it intensities are asked above all: right maps have 0.26 to 0.66 before they bend."""
_FAR_BETTER = 1.5
"""How much better they must agree then. Maps that had gone wrong by 40 mm: 3.4 to 3.8 times; right
ones, of one contrast or two, 0.95 to 1.1 times."""
_MARGIN = 4
"""Tokens round scan B that are embedded too, so that those at its edge see what they would."""


def embed_in_pose(
    volume: Volume,
    embedding: Embedding,
    encoder: SwinEncoder,
    settings: EmbedSettings,
    *,
    matrix: np.ndarray,
    b: Embedding,
) -> Steps[Embedding]:
    """Embed scan A as it looks in the pose and with the voxels of scan B.

    Parameters
    ----------
    volume : Volume
        Scan A with raw intensities.
    embedding : Embedding
        Of A as it is.
    encoder, settings
        That `embedding` was made with.
    matrix : np.ndarray (4, 4)
        From (z, y, x, 1) in mm of A to mm of B.
    b : Embedding
        Of scan B.

    Yields
    ------
    Progress
        After every batch of windows.

    Returns
    -------
    Embedding
        On the token grid of A, interpolated linearly between tokens of the turned scan; 0 for
        tokens that lie more than four tokens out of scan B.
    """
    yield Progress(0, 0, "windows")
    stride = b.stride
    region = region_of(volume.shape, settings)
    # Voxels of A's region to voxels of B.
    to_b = np.linalg.inv(b.affine) @ matrix @ volume.affine
    to_b[:3, 3] += to_b[:3, :3] @ [part.start for part in region]
    corners = np.stack(np.meshgrid(*([-0.5, side - 0.5] for side in embedding.shape)), -1)
    corners = corners.reshape(-1, 3) @ to_b[:3, :3].T + to_b[:3, 3] - b.offset_vox
    # In whole tokens of B, from its first voxel on; rounding must not add one.
    edges = np.round((corners + 0.5) / stride, 6)
    first = np.maximum(np.floor(edges.min(0)), -_MARGIN).astype(int)
    end = np.minimum(np.ceil(edges.max(0)), np.asarray(b.grid) + _MARGIN).astype(int)
    if (end <= first).any():
        return replace(embedding, features=torch.zeros_like(embedding.features))
    origin = first * stride + np.asarray(b.offset_vox)
    shape = tuple(int(side) for side in (end - first) * stride)
    step = np.eye(4)
    step[:3, 3] = origin
    # In voxels of B; zeros that take no memory: only the shape is needed.
    grid = Volume(np.broadcast_to(np.float32(0), shape), step, name=volume.name)

    def turned(part: np.ndarray) -> np.ndarray:
        return resample_to(Volume(part, to_b, name=volume.name), grid).array

    tissue = foreground_mask(volume.array)
    foreground = foreground_tokens(turned(tissue[region].astype(np.float32)) >= 0.5, stride)
    yield Progress(0, 0, "windows")
    image = normalised(volume, encoder, settings, tissue)
    image = smoothed(image, np.linalg.norm(np.linalg.inv(to_b)[:3, :3], axis=1))
    features, _ = yield from encode(turned(image), encoder, settings, tissue=foreground)
    tokens = np.stack(np.unravel_index(np.arange(embedding.foreground.numel()), embedding.grid), 1)
    places = voxels_of(tokens, replace(embedding, offset_vox=(0, 0, 0)))
    places = (places @ to_b[:3, :3].T + to_b[:3, 3] - origin + 0.5) / stride - 0.5
    where = torch.as_tensor(places, dtype=torch.float32)
    seen = sample(F.normalize(features.float(), dim=0), where)
    return replace(embedding, features=seen.reshape(-1, *embedding.grid).half())


def _registered(
    embeddings: tuple[Embedding, Embedding],
    images: tuple[Volume, Volume],
    start: np.ndarray,
    settings: RegistrationSettings,
) -> Steps[Registration]:
    """Refine a map by features; where intensities hardly agree under it, by these where it helps.

    Features keep the small weight then that they have by default.
    Patches at the edge of a cut-out see air where the whole scan has tissue, and lead astray.
    """
    found = yield from register(embeddings, images, start, settings=settings)
    if found.correlation >= _LEAST_CORRELATION or not settings.affine_steps:
        return found
    by_intensities = replace(settings, feature_weight=RegistrationSettings.feature_weight)
    other = yield from register(embeddings, images, start, settings=by_intensities)
    # Two scans that hardly overlap agree easily.
    better = other.correlation > _FAR_BETTER * found.correlation
    return other if better and other.overlap > found.overlap / 2 else found


def match_aligned(
    embeddings: tuple[Embedding, Embedding],
    images: tuple[Volume, Volume],
    encoder: SwinEncoder,
    embedding_settings: EmbedSettings,
    settings: MatchSettings | None = None,
) -> Steps[Match]:
    """Match two scans, and again in one pose where the pairs tell how they lie.

    Parameters
    ----------
    embeddings : (Embedding, Embedding)
        Of A and B, with the same encoder and stage.
    images : (Volume, Volume)
        The scans A and B themselves.
    encoder, embedding_settings
        That A was embedded with.
    settings : MatchSettings, optional
        Defaults when left out.

    Yields
    ------
    Progress
        Steps of the registration, then windows.

    Returns
    -------
    Match
        Between the tokens of both as they were; `matrix` is the map under which A was embedded
        again, or None where the first plan was kept. A plan is kept where its pairs agree on no
        map, the next one's agree on none or fewer of them are confident, or memory is short.

    Raises
    ------
    S2DCError
        As for :func:`napari_s2dc.engine.match.match_embeddings`.

    Notes
    -----
    Twice, the affine map of the pairs is refined by
    :func:`napari_s2dc.engine.registration.register`, which looks at intensities too, and scan A is
    embedded in that pose: first on a coarse grid, once more by intensities above all where they
    hardly agree, then, by features in one pose, on a fine one.
    """
    a, b = embeddings
    yield Progress(0, 0, "plans")
    first = best = match_embeddings(a, b, settings)
    found = assess(first)
    sure = found.confident
    for refinement in _LOOKS:
        if found.alignment is None or not found.agreed:
            break
        start = np.linalg.inv(found.alignment.matrix)
        try:
            # By features in one pose, too, once there are some.
            registration = yield from _registered((best.a, b), images, start, refinement)
            matrix = np.linalg.inv(registration.matrix)
            turned = yield from embed_in_pose(
                images[0], a, encoder, embedding_settings, matrix=matrix, b=b
            )
            yield Progress(0, 0, "plans")
            match = match_embeddings(turned, b, settings, matrix=matrix)
        except (S2DCError, MemoryError, RuntimeError, np.linalg.LinAlgError) as error:
            if isinstance(error, RuntimeError) and not out_of_memory(error):
                raise
            break  # what there is by now is a match, too
        # Fitted to the new pairs: they pull the map farther than the registration got by itself.
        found = assess(replace(match, matrix=None))
        if not found.agreed or found.confident < sure:
            break
        best = match
    return best if best is first else replace(best, a=a)
