"""The benchmark of few labels splits, paints and keeps books as it says."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fewshot_forest import classify, filtered, grow
from benchmarks.fewshot_runs import Memo, Result, Run, file_of, results_of
from benchmarks.fewshot_splits import HIPPOCAMPUS, MOUSE, LabelledSet, require_unseen, split_of
from benchmarks.fewshot_strokes import STROKES, best_slice, largest, paint, strokes_on
from benchmarks.fewshot_volumes import result_table
from napari_s2dc.errors import S2DCError
from napari_s2dc.volumes.phantom import phantom

NAMES = [f"scan_{number:03}.nii.gz" for number in range(160)]


@pytest.mark.parametrize("data", [MOUSE, HIPPOCAMPUS])
def test_splits_never_touch_the_tests(data: LabelledSet) -> None:
    names = NAMES[:15] if data is MOUSE else NAMES
    splits = [split_of(names, data, seed) for seed in range(3)]
    for split in splits:
        assert len(set(split.labelled)) == data.shots[-1]
        assert len(split.tests) == data.tests
        # The last ones by name are what s2dc-train holds out.
        assert split.tests == tuple(names[-data.tests :])
        assert not set(split.labelled) & set(split.tests)
    assert split_of(names, data, 1) == splits[1]
    assert len({split.labelled[0] for split in splits}) == 3


def test_too_few_scans_are_refused() -> None:
    with pytest.raises(S2DCError, match="9 scans"):
        split_of(NAMES[:9], MOUSE, 0)


def test_an_encoder_of_another_number_of_scans_is_refused() -> None:
    require_unseen({"training": {"volumes": 10}}, NAMES[:15], MOUSE)
    with pytest.raises(S2DCError, match="12 scans instead of the 10"):
        require_unseen({"training": {"volumes": 12}}, NAMES[:15], MOUSE)


def test_strokes_stay_inside_and_apart() -> None:
    region = np.zeros((60, 60), bool)
    region[10:50, 10:30] = True
    region[25:30, 15:20] = False
    painted = paint(region, np.random.default_rng(0))
    assert not (painted & ~region).any()
    assert STROKES * 15 <= painted.sum() <= STROKES * 60
    rows = np.flatnonzero(painted.any(1))
    assert rows[-1] - rows[0] > 20


def test_a_region_of_one_voxel_gets_a_stroke_of_one_voxel() -> None:
    region = np.zeros((5, 5), bool)
    region[2, 3] = True
    np.testing.assert_array_equal(paint(region, np.random.default_rng(0)), region)


def test_each_class_is_painted_in_one_slice_and_the_same_again() -> None:
    image, labels = phantom((24, 48, 64), 7.0, seed=1)
    truth = labels.array
    body = image.array > -500
    structures = largest(truth, range(1, int(truth.max()) + 1), 3)
    painted = strokes_on(truth, body, structures, 3, background_everywhere=False)
    for label in structures:
        strokes = painted == label
        assert strokes.any()
        assert not (strokes & (truth != label)).any()
        assert np.flatnonzero(strokes.any((1, 2))).tolist() == [best_slice(truth == label)]
    background = painted == 0
    assert background.any((1, 2)).sum() == 1
    assert not np.isin(truth[background], structures).any()
    assert (background & ~body).any()
    assert (background & body).any()
    again, other, more = (
        strokes_on(truth, body, structures, seed, background_everywhere=everywhere)
        for seed, everywhere in ((3, False), (4, False), (3, True))
    )
    np.testing.assert_array_equal(painted, again)
    assert (painted != other).any()
    slices = {best_slice(truth == label) for label in structures}
    assert set(np.flatnonzero((more == 0).any((1, 2)))) == slices


def test_a_forest_learns_from_labelled_voxels_only() -> None:
    image, labels = phantom((24, 32, 32), 10.0, seed=1)
    features = filtered(image, "ct_soft_tissue")
    truth = (labels.array > 0).astype(int)
    some = np.where(np.arange(24)[:, None, None] % 4 == 0, truth, -1)
    found = classify(grow([(features, some)], seed=0), features)
    tissue = features.tissue
    assert (found[tissue] == truth[tissue]).mean() > 0.9
    assert not found[~tissue].any()


def test_a_memo_charges_every_run_for_what_it_shares() -> None:
    memo = Memo()

    def make() -> str:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        return "made"

    for _ in range(2):
        begun = memo.now()
        assert memo("key", make) == "made"
        assert memo.now() - begun >= 0.05


def _never(run: Run) -> Result:
    raise AssertionError(run)


def test_finished_runs_are_not_done_again(tmp_path: Path) -> None:
    run = Run("set", "way, one", 1, 0)
    file = file_of(tmp_path, run, "one")
    file.write_text(
        '{"result": {"dice": [0.5], "hd95_mm": [1.0], "training_seconds": 2, "test_seconds": 3}}'
    )
    found = results_of([run], _never, tmp_path, "one", jobs=1)
    assert found[run] == Result([0.5], [1.0], 2, 3)
    assert file_of(tmp_path, run, "two") != file


def test_tables_are_over_seeds() -> None:
    results = {
        Run("set", way, 1, seed): Result([0.5 + gain + seed / 10] * 2, [1.0, float("nan")], 60, 2)
        for way, gain in (("label transfer", 0.1), ("random forest", 0.0))
        for seed in range(3)
    }
    rows = result_table(results, ["label transfer", "random forest"], [1]).splitlines()
    assert "0.700 ± 0.100" in rows[2]
    assert "0.600 ± 0.100" in rows[3]
