"""``s2dc segment``: scans segmented by a model, one or a whole folder."""

from __future__ import annotations

from argparse import BooleanOptionalAction
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from napari_s2dc.engine.cli_labels import LABEL_MAP_ENDINGS
from napari_s2dc.engine.cli_outcome import Outcome, over_scans
from napari_s2dc.engine.cli_scans import (
    MAPS,
    ScanFile,
    add_device_argument,
    add_json_argument,
    refuse_to_replace,
    scans_in,
    targets_of,
)
from napari_s2dc.engine.console import tell
from napari_s2dc.errors import ConfigurationError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from napari_s2dc.engine.fewshot_settings import SegmentSettings
    from napari_s2dc.engine.segmentation_model import SegmentationModel

__all__ = ["SEGMENT_SUMMARY", "run_segment", "segment_parser"]

SEGMENT_SUMMARY = "Segment scans with a model of s2dc finetune or of the Segment tab."


def segment_parser() -> ArgumentParser:
    """Build the parser of ``s2dc segment``."""
    from jsonargparse import ArgumentParser
    from jsonargparse.typing import PositiveInt

    parser = ArgumentParser(description=SEGMENT_SUMMARY)
    parser.add_argument(
        "scans",
        type=str,
        nargs="+",
        help="Scans, DICOM series folders, or folders with scans (label maps are left out).",
    )
    parser.add_argument(
        "--model", type=str, required=True, help="Model file that one of them wrote."
    )
    parser.add_argument(
        "--out",
        type=str,
        required=True,
        help="Label map to write (.nii, .nii.gz, .nrrd) for one scan, on its own grid; a folder "
        "for several. What the same model has written there before is kept, and so is what no "
        "model has written.",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="Replace label maps that no model has written, too, such as corrected ones.",
    )
    parser.add_argument(
        "--format",
        type=Literal["nii.gz", "nrrd"],
        default="nii.gz",
        help=f"What to write into a folder: NAME{LABEL_MAP_ENDINGS['nii.gz']}, or "
        f"NAME{LABEL_MAP_ENDINGS['nrrd']}, which has names and colours of the classes.",
    )
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="Write beside each label map how unsure each voxel is, 0 to 1, as NAME.uncertainty.",
    )
    parser.add_argument(
        "--flips",
        action=BooleanOptionalAction,
        default=None,
        help="Average over the scan and its mirror images; without it as the model says.",
    )
    parser.add_argument(
        "--largest-component",
        action=BooleanOptionalAction,
        default=None,
        help="Keep the largest connected part of every class; without it as the model says.",
    )
    add_device_argument(parser)
    parser.add_argument(
        "--devices",
        type=PositiveInt,
        default=1,
        help="Graphics processors that share a folder, or processes on the CPU.",
    )
    add_json_argument(parser)
    return parser


def run_segment(
    scans: list[str],
    model: str,
    out: str,
    overwrite: bool,
    format: Literal["nii.gz", "nrrd"],
    uncertainty: bool,
    flips: bool | None,
    largest_component: bool | None,
    device: str,
    devices: int,
    json: bool,
) -> int:
    """Segment scans and return the exit code: 0, or 2 when none could be used."""
    from napari_s2dc.engine.segment_files import SegmentationFiles, maker_name
    from napari_s2dc.engine.segmentation_model import SegmentationModel

    network = SegmentationModel.load(model)
    settings = replace(
        network.segment,
        flips=network.segment.flips if flips is None else flips,
        largest_component=(
            network.segment.largest_component if largest_component is None else largest_component
        ),
    )
    found = scans_in(scans)
    targets = targets_of(found, out, MAPS, LABEL_MAP_ENDINGS[format])
    files = [SegmentationFiles(target, uncertainty) for target in targets]
    refuse_to_replace([path for one in files for path in one.paths], [one.path for one in found])
    made_by = maker_name(network, settings)
    work = _Work(network, settings, made_by, device, uncertainty, overwrite, quiet=json)
    outcome = _over_scans(found, targets, work, device, devices)
    kept = sum(facts["kept"] for facts in outcome.done)
    if kept:
        tell(f"{kept} of {len(found)} label maps were there already, made by this model: kept")
    if json:
        outcome.print_json(
            model={
                "path": model,
                "kind": network.kind,
                "name": made_by,
                "classes": [{"label": one.label, "name": one.name} for one in network.classes],
            }
        )
    return outcome.exit_code


def _over_scans(
    found: list[ScanFile], targets: list[Path], work: _Work, device: str, devices: int
) -> Outcome:
    """Work through scans in this process, or in one for each device."""
    from napari_s2dc.engine.encode import device_of

    chosen = device_of(device)
    if devices == 1 or len(found) == 1:
        return over_scans(found, targets, work)
    _require_devices(chosen.type, devices)
    from napari_s2dc.engine.cli_devices import over_scans_on_devices

    return over_scans_on_devices(found, targets, work, chosen.type, min(devices, len(found)))


def _require_devices(kind: str, devices: int) -> None:
    import torch

    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind, devices)
    if devices > there:
        raise ConfigurationError(
            f"--devices {devices}: this computer has {there} of {kind.upper()}.",
            f"Use --devices {there}, or --device cpu.",
        )


@dataclass(frozen=True)
class _Work:
    """Segments a scan; a class because other processes are sent it."""

    model: SegmentationModel
    settings: SegmentSettings
    made_by: str
    device: str
    uncertainty: bool
    overwrite: bool
    quiet: bool

    def __call__(self, scan: ScanFile, target: Path) -> dict[str, Any]:
        from napari_s2dc.engine.progress import finish_with_bar
        from napari_s2dc.engine.segment_files import SegmentationFiles, segment_file

        files = SegmentationFiles(target, self.uncertainty)
        steps = segment_file(
            scan.path,
            files,
            self.model,
            self.settings,
            self.made_by,
            self.device,
            overwrite=self.overwrite,
        )
        facts: dict[str, Any] = finish_with_bar(steps)
        facts["uncertainty"] = str(files.uncertainty) if self.uncertainty else None
        if facts["kept"]:
            return facts
        if facts["warning"]:
            tell(f"{scan.path}: {facts['warning']}")
        if not self.quiet:
            print(
                f"{target}: {len(facts['voxels'])} of {len(self.model.classes)} classes, mean "
                f"uncertainty {facts['mean_uncertainty']:.3f}, {facts['seconds']:.1f} s",
                flush=True,
            )
        return facts
