"""What the bundled encoder knows, beside others with the same architecture and beside intensities.

    python -m benchmarks.evidence DATA --mouse MOUSE --hippocampus HIPPOCAMPUS --ct CT \
        --masked MASKED --write

where MOUSE, HIPPOCAMPUS and CT are encoders pretrained on the target set (as
``benchmarks.fewshot`` says) and MASKED is what ``benchmarks.masked_modelling`` made of the run of
the bundled encoder. Finished figures are kept in ``--runs``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.ablations import VARIANTS, run_of
from benchmarks.descriptors import mind, raw_patches
from benchmarks.evidence_tables import (
    CT_SET,
    KNOWN,
    SETS,
    TRANSFER_PAIRS,
    VIEWS,
    Figures,
    Row,
    across_table,
    contrast_table,
    fewshot_table,
    patches_table,
    plans_table,
    transfer_table,
)
from benchmarks.fewshot_splits import HIPPOCAMPUS, MOUSE, SEEDS, names_in, require_unseen
from benchmarks.matching_truth import MIND_MATCHING, RAW_MATCHING
from benchmarks.report import machine, write_section
from napari_s2dc.engine.allocator import keep_large_buffers
from napari_s2dc.engine.encoders import bundled_encoder
from napari_s2dc.method.encoder import SwinEncoder


def ablation_rows(runs: Path) -> list[Row]:
    """Rows of the variants that were trained with every seed.

    Raises
    ------
    ValueError
        None was, or they were not trained alike.
    """
    rows = []
    for name in VARIANTS:
        files = {seed: run_of(runs, name, seed) / "encoder.safetensors" for seed in SEEDS}
        missing = [str(seed) for seed, file in files.items() if not file.is_file()]
        if missing:
            print(f"Left out: {name}, not trained with seed {', '.join(missing)}.")
        else:
            rows.append(Row(name, {}, by_seed=files))
    if len({trained_on(file) for row in rows for file in row.by_seed.values()}) != 1:
        raise ValueError(f"The runs in {runs} are none or of several lengths or numbers of scans.")
    return rows


def trained_on(encoder: Path) -> tuple[int, int]:
    """Read the steps of an encoder's training, and how many scans it had."""
    facts = SwinEncoder.from_checkpoint(encoder).metadata["training"]
    return facts["steps"], facts["volumes"]


def rows_of(options: argparse.Namespace) -> list[Row]:
    """List the rows of the evidence, or those of the ablations."""
    bundled = dict.fromkeys(SETS, options.bundled)
    if options.ablations:
        return ablation_rows(options.ablations)
    rows = [Row("bundled", bundled), Row("the same, untrained", bundled, untrained=True)]
    target = (options.mouse, options.hippocampus, options.ct)
    if all(target):
        for which, path in ((MOUSE, options.mouse), (HIPPOCAMPUS, options.hippocampus)):
            metadata = SwinEncoder.from_checkpoint(path).metadata
            require_unseen(metadata, names_in(options.data / which.name), which)
        coarse = {MOUSE.name: options.mouse_coarse} if options.mouse_coarse else {}
        encoders = dict(zip(SETS, target, strict=True))
        rows.append(Row("pretrained on the target set", encoders, network_encoders=coarse))
    if options.masked:
        rows.append(Row("masked-image modelling", dict.fromkeys(SETS, options.masked)))
    for item in options.also:
        name, _, path = item.partition("=")
        rows.append(Row(name, dict.fromkeys(SETS, Path(path))))
    rows.append(Row("intensities: MIND", bundled, descriptor=mind, matching=MIND_MATCHING))
    raw = Row("intensities: voxels", bundled, descriptor=raw_patches, matching=RAW_MATCHING)
    rows.append(raw)
    return rows


PARTS = ("patches", "contrast", "plans", "across", "transfer", "fewshot")
SEEN = (
    "The bundled encoder was trained without labels on other scans of the same three kinds "
    f"({MOUSE.name}: nine brains that are no tests; {HIPPOCAMPUS.name}: ten; CTs of three other "
    "patients), an average brain, four phantoms as CT and made-up anatomies; no set is wholly new "
    "to it. So was the one for any contrast, by borders and with views of made-up anatomies in "
    "contrasts of their own."
)
TEXTS = {
    "patches": (
        "Matching: the most similar patch of a random view of the same scan is the true one "
        f"({', '.join(f'{VIEWS[name]} views of each test of {name}' for name in SETS)}; features "
        "alone, no transport and no prior). 5-NN and linear: the structure of a patch named from "
        f"{KNOWN[MOUSE.name]} and {KNOWN[HIPPOCAMPUS.name]} other subjects; {CT_SET} has one "
        "labelled scan, so its patches are named from other slabs of the same scan, which measures "
        "less. Patches of 8 voxels a side."
    ),
    "contrast": (
        "Four phantom torsos, each shown as CT and as T2-weighted MR; the same random views; the "
        "most similar patch. Within PET: the same torsos as PET with FDG, blurred to 6 mm; there "
        "is no PET in the training but what made-up anatomies in random contrasts may look like. "
        "Torsos of other seeds by the same formulas are among the made-up anatomies of the "
        "training, in random contrasts, so this is no test on a new kind of scan."
    ),
    "plans": (
        "Four phantom torsos and views as in *contrast*, matched by transport with a dustbin, "
        "patches compared together with their neighbours: as they lie, with a prior of places "
        "after centring; in one pose, as `s2dc match` does, the scan turned into the pose of the "
        "view by the pairs and a registration, embedded and matched again; map alone: the patch "
        "nearest to where that registration puts each, which knows that the truth is an affine "
        "map. Dice: labels carried from each torso to the one before in the other contrast, "
        "through the plan alone and as `s2dc transfer` does; a pair for which no map is found "
        "counts as 0."
    ),
    "across": (
        "The structure of a patch of two phantom torsos named by its 5 nearest in two others, all "
        "four shown as CT and as T2-weighted MR. All torsos lie alike in their scans: the last row "
        "is what the place of a patch in its scan tells alone."
    ),
    "transfer": (
        f"{TRANSFER_PAIRS} ordered pairs of the tests of each set. Plan alone: shares of "
        "labels through the transport plan; registered: as `s2dc transfer` does, by intensities "
        "too; a pair for which no map is found counts as 0, which is every pair of the "
        "intensities: what counts as confident was chosen for encoders."
    ),
    "fewshot": (
        "One labelled scan (three draws), tests as in the tables of few labels above; with labels "
        "carried: to other scans that are no tests, as there; strokes of the background in the "
        "slice of every organ. A dash: does not apply or was not run "
        "(`--jobs 0` leaves out what is not there)."
    ),
}
SPREAD = (
    f"Mean ± standard deviation over {len(SEEDS)} seeds: draws of the known or labelled subjects, "
    "and random weights where nothing was trained. Every encoder was trained once, so its own "
    "chance is not in it."
)
ABLATIONS_SPREAD = (
    f"Mean ± standard deviation over {len(SEEDS)} seeds, of the training and of the draws of the "
    "known subjects together."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the data sets, decathlon folders")
    parser.add_argument("--bundled", type=Path, help="encoder; default: the bundled one")
    parser.add_argument("--mouse", type=Path, help="encoder pretrained on mouse_brain")
    parser.add_argument("--mouse-coarse", type=Path, help="the like at 0.3 mm, for Fine-tune")
    parser.add_argument("--hippocampus", type=Path, help="encoder pretrained on hippocampus")
    parser.add_argument("--ct", type=Path, help="encoder pretrained on CT")
    parser.add_argument("--masked", type=Path, help="encoder of benchmarks.masked_modelling")
    parser.add_argument(
        "--also", nargs="+", default=[], metavar="NAME=ENCODER", help="more rows, as yours"
    )
    parser.add_argument(
        "--ablations", type=Path, help="runs of benchmarks.ablations in place of all other rows"
    )
    parser.add_argument("--title", default="", help="what these ablations have in common")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"), help="what is finished")
    parser.add_argument("--jobs", type=int, default=2, help="few-shot runs at a time")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="all by default")
    parser.add_argument("--write", action="store_true", help="put it into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    if options.ablations and "fewshot" in (options.parts or ()):
        parser.error("--parts fewshot: has no ablations.")
    options.parts = options.parts or (PARTS[:-1] if options.ablations else PARTS)
    options.bundled = options.bundled or bundled_encoder()
    keep_large_buffers()
    options.runs.mkdir(parents=True, exist_ok=True)
    figures, rows = Figures(options.runs / "figures.json"), rows_of(options)
    made: dict[str, Callable[[], str]] = {
        "patches": lambda: patches_table(rows, options.data, figures),
        "contrast": lambda: contrast_table(rows, figures),
        "plans": lambda: plans_table(rows, figures),
        "across": lambda: across_table(rows, figures),
        "transfer": lambda: transfer_table(rows, options.data, figures),
        "fewshot": lambda: fewshot_table(rows, options.data, options.runs, options.jobs),
    }
    if options.ablations:
        steps, volumes = trained_on(rows[0].by_seed[SEEDS[0]])
        facts = f"Each trained alike for {steps} steps on {volumes} scans. {ABLATIONS_SPREAD}"
        kind, given = "Ablations", "--ablations RUNS"
        if options.title:
            kind, given = f"{kind}, {options.title}", f'{given} --title "{options.title}"'
    else:
        kind, facts = "Evidence", f"{SEEN} {SPREAD}"
        given = (
            "--mouse MOUSE --mouse-coarse COARSE --hippocampus HIPPOCAMPUS --ct CT --masked MASKED"
        )
        if options.also:
            given += " --also NAME=ENCODER"
    for part in options.parts:
        section = "\n\n".join(
            [
                f"## {kind}, {part}",
                machine(torch.device("cpu")),
                f"{TEXTS[part]} {facts}",
                made[part](),
                f"    python -m benchmarks.evidence DATA {given} --parts {part} --write",
            ]
        )
        print(section, flush=True)
        if options.write:
            write_section(f"{kind} {part}".lower(), section)


if __name__ == "__main__":
    main()
