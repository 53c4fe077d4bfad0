"""A trained model on the Segment tab: files, other scans, folders, and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml

from napari_s2dc.engine.cli import main
from napari_s2dc.volumes.io import read_volume
from napari_s2dc.widgets.preferences import PLUGIN
from tests.gui.conftest import SHAPE, add_phantom, open_workbench
from tests.gui.segmenting import painted, settled, trained

pytestmark = pytest.mark.usefixtures("light_quick")


def saved_phantom(path: Path, seed: int) -> Path:
    """Write a phantom scan as NIfTI with voxels of 3 mm."""
    from napari_s2dc.volumes.phantom import phantom
    from napari_s2dc.volumes.writing import write_volume

    image, _ = phantom(SHAPE, seed=seed)
    return write_volume(path, image.array, image)


def written(workbench: Any, path: Path, qtbot: Any) -> None:
    """Wait until a file is there and was told of."""
    qtbot.waitUntil(lambda: f"Saved {path}" in workbench.message.text())
    assert path.is_file()


@pytest.mark.parametrize("mode", ["quick", "finetune"])
def test_the_command_line_repeats_a_session(
    mode: str, plugin: Any, tmp_path: Path, qtbot: Any
) -> None:
    scan = saved_phantom(tmp_path / "scan.nii.gz", 1)
    (layer,) = plugin.open(str(scan), plugin=PLUGIN)
    workbench = open_workbench(plugin, qtbot)
    workbench.header.volume.choose(layer)
    strokes = painted(workbench, qtbot)
    tab = workbench.segment_tab
    tab.largest.setChecked(True)
    tab.mode.setCurrentIndex(tab.mode.findData(mode))
    tab.steps.setValue(tab.steps.minimum())
    found = trained(workbench, qtbot)
    strokes.save(str(tmp_path / "strokes.nii.gz"), plugin=PLUGIN)
    config, model = tmp_path / "config.yaml", tmp_path / "model.safetensors"
    torch.set_num_threads(1)  # as in the thread that trained; more would round otherwise
    workbench.segment_tab.models.export_wanted.emit(str(config))
    written(workbench, config, qtbot)
    assert yaml.safe_load(config.read_text())["encoder"] == "untrained"  # the one at hand, by name
    learned = main(
        [
            *("finetune", "--config", str(config), "--images", str(scan)),
            *("--labels", str(tmp_path / "strokes.nii.gz"), "--out", str(model)),
        ]
    )
    assert learned == 0
    result = tmp_path / "result.nii.gz"
    assert main(["segment", str(scan), "--model", str(model), "--out", str(result)]) == 0
    np.testing.assert_array_equal(read_volume(result, labels=True).array, found.data)


def test_a_model_is_saved_and_used_by_the_command_line(
    plugin: Any, tmp_path: Path, qtbot: Any
) -> None:
    scan = saved_phantom(tmp_path / "scan.nii.gz", 1)
    (layer,) = plugin.open(str(scan), plugin=PLUGIN)
    workbench = open_workbench(plugin, qtbot)
    painted(workbench, qtbot)
    found = trained(workbench, qtbot)
    model = tmp_path / "model.safetensors"
    workbench.segment_tab.models.save_wanted.emit(str(model))
    written(workbench, model, qtbot)
    result = tmp_path / "result.nii.gz"
    assert main(["segment", str(scan), "--model", str(model), "--out", str(result)]) == 0
    np.testing.assert_array_equal(read_volume(result, labels=True).array, found.data)
    assert layer.data.shape == found.data.shape


def test_a_model_is_loaded_and_applied_to_another_scan(
    workbench: Any, viewer: Any, scan: Any, tmp_path: Path, qtbot: Any
) -> None:
    box = workbench.segment_tab.models
    assert not box.apply_button.isEnabled()
    assert "Train or load" in box.apply_button.toolTip()
    painted(workbench, qtbot)
    workbench.segment_tab.largest.setChecked(True)
    first = trained(workbench, qtbot)
    box.save_wanted.emit(str(tmp_path / "model.safetensors"))
    written(workbench, tmp_path / "model.safetensors", qtbot)
    workbench.segment_tab.largest.setChecked(False)
    other = add_phantom(viewer, 2, translate=(10.0, -200.0, 35.0), visible=False)
    box.load_wanted.emit(str(tmp_path / "model.safetensors"))
    qtbot.waitUntil(lambda: "Loaded model.safetensors" in workbench.message.text())
    assert workbench.segment_tab.largest.isChecked()
    assert "class 2" in box.about.text()
    box.menu.aboutToShow.emit()
    actions = {action.text(): action for action in box.menu.actions()}
    assert list(actions) == [other.name, scan.name, "", "Folder…"]
    actions[other.name].trigger()
    settled(workbench, qtbot)
    second = workbench.segmenting.layers.found_for(other)
    np.testing.assert_allclose(second.extent.world, other.extent.world)
    assert second.data.any()
    assert not second.visible  # it lies where the other scan is shown
    assert "hidden, as its scan is" in workbench.message.text()
    np.testing.assert_allclose(second.colormap.map(2), first.colormap.map(2))
    actions[scan.name].trigger()
    before = first.data.copy()
    settled(workbench, qtbot)
    np.testing.assert_array_equal(first.data, before)


def test_a_folder_is_segmented_and_bad_files_are_reported(
    workbench: Any, tmp_path: Path, qtbot: Any
) -> None:
    painted(workbench, qtbot)
    found = trained(workbench, qtbot)
    scans, results = tmp_path / "scans", tmp_path / "results"
    saved_phantom(scans / "one.nii.gz", 1)
    (scans / "broken.nii.gz").write_bytes(b"no scan")
    box = workbench.segment_tab.models
    box.folder_wanted.emit(str(scans), str(results))
    settled(workbench, qtbot)
    words = workbench.message.text()
    assert "1 of 2 scans" in words
    assert "Skipped: broken.nii.gz" in words
    (result,) = results.iterdir()
    labels = nibabel.load(result)
    assert np.array_equal(np.unique(labels.dataobj), np.unique(found.data))
    box.folder_wanted.emit(str(scans), str(results))
    settled(workbench, qtbot)
    assert "1 of them were there already" in workbench.message.text()
    nibabel.save(nibabel.Nifti1Image(labels.get_fdata().astype(np.uint8), labels.affine), result)
    corrected = result.read_bytes()
    box.folder_wanted.emit(str(scans), str(results))
    settled(workbench, qtbot)
    assert "0 of 2 scans" in workbench.message.text()
    assert "one.labels.nii.gz was not made by s2dc segment" in workbench.message.text()
    assert result.read_bytes() == corrected


def test_scans_unlike_those_of_the_training_are_told(
    workbench: Any, viewer: Any, tmp_path: Path, qtbot: Any
) -> None:
    painted(workbench, qtbot)
    trained(workbench, qtbot)
    assert "was trained" not in workbench.message.text()
    fine = np.asarray(add_phantom(viewer, 2, visible=False).data)
    levels = viewer.add_image(
        [fine.repeat(2, 2), fine], multiscale=True, name="levels", scale=(3, 3, 1.5), units="mm"
    )
    box, found_for = workbench.segment_tab.models, workbench.segmenting.layers.found_for
    box.apply_wanted.emit(levels)
    settled(workbench, qtbot)
    assert found_for(levels).data.shape == SHAPE  # at the level with voxels as in training
    assert "was trained" not in workbench.message.text()
    coarse = viewer.add_image(fine, name="coarse", scale=(9, 9, 9), units="mm")
    box.apply_wanted.emit(coarse)
    settled(workbench, qtbot)
    assert "the model was trained at 3 × 3 × 3 mm" in workbench.message.text()
    scans = tmp_path / "scans"
    scans.mkdir()
    coarse.save(str(scans / "coarse.nii.gz"), plugin=PLUGIN)
    box.folder_wanted.emit(str(scans), str(tmp_path / "results"))
    settled(workbench, qtbot)
    assert "Look at coarse.nii.gz (This scan has voxels of 9" in workbench.message.text()


def test_what_is_no_model_is_refused_in_one_sentence(
    workbench: Any, tmp_path: Path, qtbot: Any
) -> None:
    import pickle

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"weights": 1}))
    workbench.segment_tab.models.load_wanted.emit(str(path))
    settled(workbench, qtbot)
    assert "pickle) are never read" in workbench.message.text()
    assert workbench.segmenting.training.model is None


def test_an_opened_checkpoint_is_exported_by_its_path(
    workbench: Any, checkpoint: Path, tmp_path: Path, qtbot: Any
) -> None:
    copy = tmp_path / "mine.safetensors"
    copy.write_bytes(checkpoint.read_bytes())
    workbench.encoders.load_encoder("untrained", str(copy))
    qtbot.waitUntil(lambda: workbench.session.encoder.path == copy)
    assert workbench.segmenting.choices.encoder == str(copy)
