"""Make the pictures of what the bundled encoders know: one anatomy in three contrasts, real scans.

    python docs/make_evidence_pictures.py DATA

DATA holds the decathlon folders ``mouse_brain`` and ``totalseg_ct``, as for the benchmarks.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.encoders import ANY_CONTRAST, bundled_encoder, encoder_named
from napari_s2dc.engine.measures import ViewPair, match_views, two_views
from napari_s2dc.engine.pictures import colours_of, draw_embedding, draw_matches, match_picture
from napari_s2dc.engine.progress import finish
from napari_s2dc.method.affine import Affine3D
from napari_s2dc.method.encoder import STRIDES, SwinEncoder
from napari_s2dc.volumes.io import read_volume
from napari_s2dc.volumes.phantom import Contrast, phantom
from napari_s2dc.volumes.preprocess import foreground_mask, normalize
from napari_s2dc.volumes.volume import Volume

PICTURES = Path(__file__).resolve().parent / "pictures"
SEED = 201
"""A phantom that the training did not see."""
CONTRASTS: tuple[Contrast, ...] = ("ct", "t1", "t2")
STAGE = 2


def _embedded(volume: Volume, encoder: SwinEncoder) -> Embedding:
    return finish(embed_volume(volume, encoder, EmbedSettings(stage=STAGE, device="cpu")))


def _colours(embeddings: list[Embedding]) -> list[np.ndarray]:
    return colours_of(
        [one.features.float() for one in embeddings],
        [one.foreground for one in embeddings],
        [one.shape for one in embeddings],
        STRIDES[STAGE],
    )


def _grey(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[..., None], 3, axis=-1)


def draw_contrasts(encoder: SwinEncoder, path: Path) -> None:
    """Draw the colours of one torso as CT, T1 and T2; all three share one set of colours."""
    volumes = [phantom(seed=SEED, contrast=contrast)[0] for contrast in CONTRASTS]
    colours = _colours([_embedded(volume, encoder) for volume in volumes])
    images = [normalize(volume.array, "auto") for volume in volumes]
    rows = []
    for contrast, image, colour in zip(CONTRASTS, images, colours, strict=True):
        name = contrast.upper()
        if contrast != CONTRASTS[0]:
            rows.append((f"As {name}", _grey(image)))
        rows.append((f"{name}: colours", colour))
    body = foreground_mask(volumes[0].array)
    draw_embedding(path, images[0], body, rows, volumes[0].spacing_mm)


def _views(contrast: Contrast) -> ViewPair:
    volume, _ = phantom(seed=SEED, contrast=contrast)
    return two_views(
        normalize(volume.array, "auto"),
        foreground_mask(phantom(seed=SEED)[0].array),
        Affine3D.in_plane((9.0, -7.0), 20.0, 1.1),
        grid=(2, 2, 2),
        crop_size=48,
        stage=STAGE,
    )


def draw_matches_across(encoder: SwinEncoder, path: Path) -> None:
    """Draw which patches of a CT are found in a view of it, and in one as T2."""
    ct, t2 = _views("ct"), _views("t2")
    pictures = []
    for title, pair in (("CT to CT", ct), ("CT to T2", replace(ct, second=t2.second))):
        pictures.append(match_picture(title, pair, match_views(pair, encoder)))
    draw_matches(path, pictures)


def draw_real(data: Path, encoder: SwinEncoder) -> None:
    """Draw scans that no training saw, with the untrained and the bundled encoder."""
    import torch

    torch.manual_seed(0)
    untrained = SwinEncoder(encoder.config).eval()
    for name in ("mouse_brain", "totalseg_ct"):
        volume = read_volume(sorted((data / name / "imagesTr").iterdir())[-1])
        rows = [
            (title, _colours([_embedded(volume, one)])[0])
            for title, one in (("Untrained", untrained), ("Bundled encoder", encoder))
        ]
        image = normalize(volume.array, "auto")
        draw_embedding(
            PICTURES / f"knows_{name}.png",
            image,
            foreground_mask(volume.array),
            rows,
            volume.spacing_mm,
        )


def main() -> None:
    """Make them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    options = parser.parse_args()
    encoder = SwinEncoder.from_checkpoint(bundled_encoder()).eval()
    any_contrast = encoder_named(ANY_CONTRAST)
    assert any_contrast is not None
    for one, suffix in (
        (encoder, ""),
        (SwinEncoder.from_checkpoint(any_contrast).eval(), "_by_borders"),
    ):
        draw_contrasts(one, PICTURES / f"contrasts{suffix}.png")
        draw_matches_across(one, PICTURES / f"across_contrasts{suffix}.png")
    draw_real(options.data, encoder)


if __name__ == "__main__":
    main()
