"""Sample data for napari: labelled phantom torsos, made on the spot, and a real average head."""

from __future__ import annotations

import numpy as np

from napari_s2dc._reader import LayerData, layer_data
from napari_s2dc.errors import S2DCError
from napari_s2dc.volumes.phantom import LABELS, Contrast, phantom
from napari_s2dc.volumes.volume import Volume

__all__ = ["mni152", "phantom_pair_ct", "phantom_pair_mr", "phantom_pair_pet"]


def _pair(contrast: Contrast) -> list[LayerData]:
    layers = []
    for subject in (1, 2):
        image, labels = phantom(seed=subject, contrast=contrast)
        image.name = f"torso {subject} {contrast.upper()}"
        labels.name = f"torso {subject} labels"
        for layer in (layer_data(image), layer_data(labels, labels=True, names=LABELS)):
            # Both lie at the same place; the second would hide the first.
            layer[1]["visible"] = subject == 1
            layers.append(layer)
    return layers


def phantom_pair_ct() -> list[LayerData]:
    """Two CT-like torsos with their organ labels (npe2 sample data command).

    Returns
    -------
    list of tuple
        Image and labels of two subjects, (z, y, x) in mm.
    """
    return _pair("ct")


def phantom_pair_mr() -> list[LayerData]:
    """Two T1-weighted MR-like torsos with their organ labels (npe2 sample data command).

    Returns
    -------
    list of tuple
        Image and labels of two subjects, (z, y, x) in mm.
    """
    return _pair("t1")


def phantom_pair_pet() -> list[LayerData]:
    """Two torsos as PET with FDG, with their organ labels (npe2 sample data command).

    Returns
    -------
    list of tuple
        Image and labels of two subjects, (z, y, x) in mm.
    """
    return _pair("pet")


def mni152() -> list[LayerData]:
    """Average T1-weighted head of 152 people (npe2 sample data command); it comes with nilearn.

    Returns
    -------
    list of tuple
        One image, (z, y, x) in mm.

    Raises
    ------
    S2DCError
        nilearn is not installed; nothing is ever downloaded.
    """
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        raise S2DCError(
            "The average head comes with nilearn, which is not installed.",
            "Install it with: pip install nilearn",
        ) from error
    template = load_mni152_template(resolution=2)
    array = np.asarray(template.dataobj, dtype=np.float32)
    return [
        layer_data(Volume.from_file_array(array, template.affine, name="MNI152 T1", modality="mr"))
    ]
