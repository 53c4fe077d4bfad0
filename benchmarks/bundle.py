"""Put a trained encoder into the package: half precision, with what its model card needs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from napari_s2dc.method.encoder import SwinEncoder

WEIGHTS = Path(__file__).resolve().parent.parent / "napari_s2dc" / "weights"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder", type=Path, help="encoder.safetensors of a run")
    parser.add_argument("name", help="what it is called")
    options = parser.parse_args(arguments)
    encoder = SwinEncoder.from_checkpoint(options.encoder)
    path = WEIGHTS / f"{options.name.lower().replace(' ', '_')}.safetensors"
    encoder.half().save(path, {**encoder.metadata, "name": options.name})
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
