"""``s2dc-train`` with the ground truth of the released code, for what exact pairs are worth.

The released code inverts a map factor by factor but keeps their order, T⁻¹·Rᵀ·S⁻¹ for
S⁻¹·Rᵀ·T⁻¹: right for a shift, a turn or a scale alone, wrong where they meet. The image is warped
by the one map, the true pairs follow the other. A test holds these pairs equal to those of the
released code.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from unittest.mock import patch

import torch
from s2dc_train import cli, views
from torch import Tensor

from napari_s2dc.method.affine import Affine3D
from napari_s2dc.method.tokens import partners


def released_map(affine: Affine3D) -> Affine3D:
    """Map whose exact inverse is the one that the released code takes for that of `affine`.

    Parameters
    ----------
    affine : Affine3D
        Shift · turns · scale, as :meth:`Affine3D.compose` makes it.
    """
    linear, shift = affine.matrix[..., :3, :3], affine.matrix[..., :3, 3:]
    moved = torch.cat([linear, linear @ shift], dim=-1)
    return Affine3D(torch.cat([moved, affine.matrix[..., 3:, :]], dim=-2))


def released_partners(affine: Affine3D, grid_shape: Sequence[int], token_size_vox: float) -> Tensor:
    """As :func:`napari_s2dc.method.tokens.partners`, by the released code's inverse."""
    return partners(released_map(affine), grid_shape, token_size_vox)


def main() -> int:
    """Train as the command line says."""
    with patch.object(views, "partners", released_partners):
        return cli.main()


if __name__ == "__main__":
    sys.exit(main())
