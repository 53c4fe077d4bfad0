"""``s2dc finetune``: a segmentation model from a few labelled scans."""

from __future__ import annotations

import json as json_text
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_s2dc.engine.cli_labels import (
    LabelledFile,
    class_names_beside,
    in_order_of,
    labelled_files,
    unlabelled_files,
)
from napari_s2dc.engine.cli_scans import (
    add_encoder_argument,
    add_json_argument,
    encoder_of,
    read_scan,
    refuse_to_replace,
    require_preset,
)
from napari_s2dc.engine.console import INTERRUPTED, NotedInterrupt, counted, tell
from napari_s2dc.errors import ConfigurationError, S2DCError
from napari_s2dc.files import why_not_writable

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from napari_s2dc.engine.fewshot_settings import FewshotSettings, SegmentationClass
    from napari_s2dc.engine.labelled_scans import LabelledScan
    from napari_s2dc.engine.segmentation_model import SegmentationModel
    from napari_s2dc.method.encoder import SwinEncoder

__all__ = ["FINETUNE_SUMMARY", "finetune_parser", "run_finetune"]

FINETUNE_SUMMARY = "Learn to segment from a few labelled scans and write the model."

_ENDING = ".safetensors"


def finetune_parser() -> ArgumentParser:
    """Build the parser of ``s2dc finetune``."""
    from jsonargparse import ArgumentParser, set_parsing_settings
    from jsonargparse.typing import NonNegativeInt, PositiveInt

    from napari_s2dc.engine.fewshot_settings import FewshotSettings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(description=FINETUNE_SUMMARY)
    parser.add_argument(
        "--config",
        action="config",
        help="YAML with any of the settings below, such as the Segment tab exports; options given "
        "here win.",
    )
    parser.add_argument(
        "--images", type=str, required=True, help="Scan, DICOM series folder, or folder with scans."
    )
    parser.add_argument(
        "--labels",
        type=str,
        required=True,
        help="Label map of the one scan, or folder with label maps of the scans' names.",
    )
    parser.add_argument("--out", type=str, required=True, help=f"Model file (*{_ENDING}).")
    parser.add_argument(
        "--shots",
        type=PositiveInt | None,
        default=None,
        help="Learn from so many of the labelled scans, chosen at random by --seed; fewer are a "
        "part of more. Without it from all.",
    )
    parser.add_argument(
        "--held-out",
        type=NonNegativeInt,
        default=0,
        help="Set aside so many of the labelled scans, chosen at random by --seed: the model is "
        "compared with them, and fine-tuning keeps what was best on them.",
    )
    parser.add_argument(
        "--unlabelled",
        type=str,
        nargs="+",
        default=[],
        metavar="SCANS",
        help="More scans of the kind, files or folders: labels are carried to them as by s2dc "
        "transfer, and fine-tuning learns from those too. It may be the folder of --images: scans "
        "that are learned from or set aside are left out.",
    )
    add_encoder_argument(parser)
    add_json_argument(parser)
    parser.add_class_arguments(FewshotSettings, as_group=False)
    # Label maps in folders are complete, and time is at hand; strokes come with a configuration.
    parser.set_defaults({"mode": "finetune", "zero": "background"})
    return parser


def run_finetune(
    images: str,
    labels: str,
    out: str,
    shots: int | None,
    held_out: int,
    unlabelled: list[str],
    encoder: str | None,
    json: bool,
    config: Any,
    **options: Any,
) -> int:
    """Train a model and return the exit code: 0, or 130 when Ctrl-C ended the training early."""
    del config  # its settings are among the options
    from napari_s2dc.engine.fewshot import train_model
    from napari_s2dc.engine.fewshot_settings import settings_from
    from napari_s2dc.engine.progress import StopTraining, finish_with_bar

    settings = settings_from(options, "The command line")
    if unlabelled and settings.mode == "quick":
        raise ConfigurationError(
            "Quick learns nothing from --unlabelled.", "Use --mode finetune, or leave it out."
        )
    require_preset(settings.preset)
    there, missing = labelled_files(images, labels)
    files, judges = _choose(there, shots, held_out, settings.seed)
    target = Path(out)
    known = [one.scan for one in (*files, *judges)] + [one.labels for one in there]
    more = unlabelled_files(unlabelled, known) if unlabelled else []
    _require_place(target, [*known, *more])
    used = {path.resolve() for path in more}
    if left_out := [path for path in missing if path.resolve() not in used]:
        advice = ""
        if settings.mode == "finetune" and not unlabelled:
            advice = _advice(images, [*known, *(one.scan for one in there)])
        tell(
            f"{len(left_out)} of {len(there) + len(missing)} scans in {images} have no labels in "
            f"{labels}: left out{advice}"
        )
    network = encoder_of(encoder)
    scans, others = ([_read(one, network) for one in part] for part in (files, judges))
    classes = _classes(files, scans, labels, settings)
    voxels = _voxels_of(scans)
    if not json:
        _print_classes(classes, voxels)
    _tell_doubts(scans, classes, voxels, settings)
    started = time.perf_counter()
    with NotedInterrupt() as interrupt:
        steps = train_model(
            scans, network, settings, classes=classes, unlabelled=more, held_out=others
        )
        try:
            model = finish_with_bar(steps, lambda: interrupt.noted)
        except StopTraining:
            raise KeyboardInterrupt from None
    seconds = round(time.perf_counter() - started, 2)
    model.save(target)
    for sentence in model.metadata["left_out"]:
        tell(sentence)
    if failure := model.metadata.get("failure"):
        raise S2DCError(failure, f"The best so far is in {target}.")
    if others and not interrupt.noted:
        found = _judge(model, others, settings.device)
        metrics = {**model.metadata.get("metrics", {}), "held_out": found}
        model = replace(model, metadata={**model.metadata, "metrics": metrics})
        model.save(target)
    facts = {
        "model": str(target),
        "kind": model.kind,
        "interrupted": interrupt.noted,
        "encoder": model.metadata["encoder"],
        "classes": [asdict(one) for one in model.classes],
        "scans": [str(one.scan) for one in files],
        "unlabelled_scans": [one["name"] for one in model.metadata["unlabelled_scans"]],
        "left_out": model.metadata["left_out"],
        "held_out": [str(one.scan) for one in judges],
        "steps": model.metadata.get("steps"),
        "loss": model.metadata.get("loss"),
        "metrics": model.metadata.get("metrics", {}),
        "seconds": seconds,
        "settings": asdict(settings),
    }
    if json:
        print(json_text.dumps(facts, indent=2))
    else:
        _print_result(facts)
    if interrupt.noted:
        tell(f"interrupted; {target} holds the best model so far")
    return INTERRUPTED if interrupt.noted else 0


def _advice(images: str, known: Sequence[Path]) -> str:
    """How fine-tuning could use the scans that are not known, unless all are mere channels."""
    try:
        unlabelled_files([images], known)
    except S2DCError:
        return ""
    return f" (--unlabelled {images} would carry labels to them and learn from them too)"


def _choose(
    files: Sequence[LabelledFile], shots: int | None, held_out: int, seed: int
) -> tuple[list[LabelledFile], list[LabelledFile]]:
    """Draw scans to learn from, and those set aside, which are the same for any number of shots.

    Those to learn from are in the order of their names, as the Segment tab takes them.

    Raises
    ------
    ConfigurationError
        There are not so many.
    """
    order = in_order_of(files, seed)
    rest = len(order) - held_out
    if rest < (shots or 1):
        asked = f"--shots {shots}" if shots else "one scan to learn from"
        aside = f" and --held-out {held_out}" if held_out else ""
        raise ConfigurationError(
            f"There {'is' if len(order) == 1 else 'are'} "
            f"{counted(len(order), 'scan', 'scans')} with labels, too few for {asked}{aside}.",
            "Ask for fewer, or add label maps.",
        )
    drawn = sorted(order[: shots or rest], key=lambda file: file.name.as_posix())
    return drawn, order[rest:]


def _require_place(target: Path, inputs: Sequence[Path]) -> None:
    """Refuse a place where the model could not be written after all the work.

    Raises
    ------
    S2DCError
        Another ending, a folder, an input, or a folder that cannot be written.
    """
    if target.suffix.lower() != _ENDING or target.is_dir():
        raise ConfigurationError(
            f"--out {target} is no name of a model file.", f"End it with {_ENDING}."
        )
    refuse_to_replace([target], inputs)
    if reason := why_not_writable(target):
        raise S2DCError(f"Cannot write {target}: {reason}.", "Name another place for --out.")


def _read(file: LabelledFile, encoder: SwinEncoder) -> LabelledScan:
    from napari_s2dc.engine.labelled_scans import LabelledScan
    from napari_s2dc.volumes.io import read_volume

    return LabelledScan(read_scan(file.scan, encoder), read_volume(file.labels, labels=True))


def _classes(
    files: Sequence[LabelledFile],
    scans: Sequence[LabelledScan],
    labels: str,
    settings: FewshotSettings,
) -> tuple[SegmentationClass, ...]:
    """Classes with the names and colours that the label maps, or a file beside them, give."""
    from napari_s2dc.engine.labelled_scans import classes_in
    from napari_s2dc.volumes.segments import segments_in

    names: dict[int, str] = {}
    colours: dict[int, tuple[float, float, float]] = {}
    for file, scan in zip(files, scans, strict=True):
        for label, (name, colour) in segments_in(scan.labels).items():
            if names.setdefault(label, name) != name:
                tell(f"{file.labels} calls label {label} '{name}'; others '{names[label]}'")
            if colour is not None:
                colours.setdefault(label, colour)
    names = {**class_names_beside(Path(labels)), **names}
    return classes_in(scans, settings, names=names, colours=colours)


def _judge(
    model: SegmentationModel, scans: Sequence[LabelledScan], device: str
) -> dict[str, float | None]:
    """Compare the model with scans that were set aside, over the classes it knows."""
    import numpy as np

    from napari_s2dc.engine.evaluate import evaluate_labels, mean_of
    from napari_s2dc.engine.progress import finish_with_bar
    from napari_s2dc.engine.segment import segment_volume

    known = [one.label for one in model.classes]
    results = []
    for scan in scans:
        found = finish_with_bar(segment_volume(scan.image, model, device=device))
        truth = scan.labels.array
        reference = scan.labels.with_array(np.where(np.isin(truth, known), truth, 0))
        try:
            results.append(evaluate_labels(scan.image.with_array(found.labels), reference))
        except S2DCError as error:
            tell(f"left out of the comparison: {error}")
    means = {
        "dice": mean_of([one.mean_dice for one in results]),
        "hd95_mm": mean_of([one.mean_hd95_mm for one in results]),
        "surface_dice": mean_of([one.mean_surface_dice for one in results]),
    }
    # JSON knows no NaN.
    return {name: None if mean != mean else mean for name, mean in means.items()}


def _voxels_of(scans: Sequence[LabelledScan]) -> dict[int, int]:
    """Count the voxels of every label over all scans."""
    from napari_s2dc.engine.labelled_scans import voxels_of_labels

    voxels: dict[int, int] = {}
    for scan in scans:
        for label, count in voxels_of_labels(scan.labels.array).items():
            voxels[label] = voxels.get(label, 0) + count
    return voxels


def _tell_doubts(
    scans: Sequence[LabelledScan],
    classes: Sequence[SegmentationClass],
    voxels: Mapping[int, int],
    settings: FewshotSettings,
) -> None:
    """Say on standard error what a model of these scans will hardly do well."""
    from napari_s2dc.engine.fewshot_settings import note_on_background, note_on_spacings

    spacings = [(scan.image.name, scan.image.spacing_mm) for scan in scans]
    for note in (note_on_background(settings), note_on_spacings(spacings, settings)):
        if note:
            tell(note)
    for one in classes:
        if voxels[one.label] == 1:
            tell(f"Label {one.label} ({one.name}) has a single voxel, too little to learn it from.")


def _print_classes(classes: Sequence[SegmentationClass], voxels: Mapping[int, int]) -> None:
    width = max(len("name"), *(len(one.name) for one in classes))
    print(f"  label  {'name':<{width}}      voxels")
    for one in classes:
        print(f"  {one.label:>5}  {one.name:<{width}}  {voxels[one.label]:>10}")


def _print_result(facts: dict[str, Any]) -> None:
    classes = counted(len(facts["classes"]), "class", "classes")
    words = [f"{classes} from {counted(len(facts['scans']), 'scan', 'scans')}"]
    if facts["unlabelled_scans"]:
        words[0] += f" and labels carried to {len(facts['unlabelled_scans'])} more"
    if facts["steps"] is not None:
        words.append(counted(facts["steps"], "step", "steps"))
    if facts["loss"] is not None:
        words.append(f"loss {facts['loss']:.3f}")
    print(f"{facts['model']} ({facts['kind']}): {', '.join(words)}, {facts['seconds']:.1f} s")
    judged = facts["metrics"].get("held_out")
    if judged and judged["dice"] is not None:
        distance = "-" if judged["hd95_mm"] is None else f"{judged['hd95_mm']:.2f} mm"
        aside = counted(len(facts["held_out"]), "scan", "scans")
        print(
            f"Mean of {aside} set aside: Dice {judged['dice']:.3f}, "
            f"HD95 {distance}, surface Dice {judged['surface_dice']:.3f}"
        )
