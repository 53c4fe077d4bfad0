from __future__ import annotations

import json
import pickle
from itertools import islice
from pathlib import Path

import lightning.pytorch as lightning
import pytest
import torch
from s2dc_train.data import S2DCDataModule

from napari_s2dc.errors import ConfigurationError, S2DCError


@pytest.fixture
def ready(scan_folder, small_config) -> S2DCDataModule:
    data = S2DCDataModule(small_config(scan_folder, batch_size=2), seed=5)
    data.setup()
    return data


def batches(data: S2DCDataModule, number: int) -> list[dict]:
    return list(islice(iter(data.train_dataloader()), number))


def same(one: list[dict], other: list[dict]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a
    )


def test_last_scans_are_held_out(ready):
    assert [entry.image.name for entry in ready.train_entries] == [
        f"case_{number}.nii.gz" for number in range(3)
    ]
    assert [entry.image.name for entry in ready.validation_entries] == [
        "case_3.nii.gz",
        "case_4.nii.gz",
    ]
    assert ready.skipped == []
    assert ready.notes == []
    assert ready.preflight_report is not None
    assert all(scan.intensity for scan in ready.preflight_report.scans)


@pytest.mark.parametrize(("wanted", "held_out"), [(1, 1), (2, 2), (3, 2), (99, 2)])
def test_at_least_half_remain_to_train_on(scan_folder, small_config, wanted, held_out):
    data = S2DCDataModule(small_config(scan_folder, validation_volumes=wanted))
    data.setup()
    assert len(data.validation_entries) == held_out
    assert len(data.train_entries) == 5 - held_out
    assert len(data.notes) == (held_out < wanted)
    if data.notes:
        assert f"Only 2 of the 5 usable scans are held out instead of {wanted}" in data.notes[0]


def test_single_scan_is_also_validated_on_and_that_is_said(tmp_path, save_scan, small_config):
    data = S2DCDataModule(small_config(save_scan(tmp_path / "only.nii.gz")))
    data.setup()
    assert data.train_entries == data.validation_entries
    assert "only one usable scan" in data.notes[0]


def test_batches_and_their_sizes(ready):
    [batch] = batches(ready, 1)
    assert batch["image"].shape == (2, 1, 16, 16, 32)
    assert batch["valid"].shape == batch["foreground"].shape == (2, 16, 16, 32)
    assert batch["start"].shape == (2, 3)
    assert batch["sample"].tolist() == [0, 1]


def test_resumed_batches_equal_the_uninterrupted_ones(ready, scan_folder, small_config):
    straight = batches(ready, 7)
    resumed = S2DCDataModule(small_config(scan_folder, batch_size=2), seed=5)
    resumed.start_sample = 8
    resumed.setup()
    assert same(batches(resumed, 3), straight[4:])


def test_worker_processes_change_nothing(ready, scan_folder, small_config):
    parallel = S2DCDataModule(small_config(scan_folder, batch_size=2, workers=2), seed=5)
    parallel.setup()
    assert same(batches(parallel, 5), batches(ready, 5))


def test_worker_processes_can_be_sent_what_they_need(ready):
    """As on Windows and macOS, where they begin without the memory of their parent."""
    loader = ready.train_dataloader()
    sent = pickle.loads(
        pickle.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn, loader.sampler))
    )
    dataset, collate, _, sampler = sent
    first = collate([dataset[number] for number in islice(iter(sampler), loader.batch_size)])
    assert same([first], batches(ready, 1))


def names(volumes):
    return [volume.name for volume in volumes]


def test_labelled_volumes_for_evaluation(ready, scan_folder, small_config):
    first, second = ready.labelled_volumes(held_out=True)
    assert (first.name, second.name) == ("case_3.nii.gz", "case_4.nii.gz")
    assert first.image.shape == (23, 24, 28)
    assert first.labels is not None
    assert first.labels.unique().tolist() == [0, 1, 2]
    assert first.labels.shape == (23, 24, 28)
    assert first.spacing_mm == pytest.approx((2, 1, 1))
    assert names(ready.labelled_volumes(held_out=False)) == [
        "case_0.nii.gz",
        "case_1.nii.gz",
        "case_2.nii.gz",
    ]


def test_scans_with_label_maps_are_held_out_first(scan_folder, small_config):
    (scan_folder / "labelsTr" / "case_4.nii.gz").unlink()
    data = S2DCDataModule(small_config(scan_folder))
    data.setup()
    assert names(data.labelled_volumes(held_out=True)) == ["case_2.nii.gz", "case_3.nii.gz"]
    assert names(data.labelled_volumes(held_out=False)) == ["case_0.nii.gz", "case_1.nii.gz"]
    assert "case_4.nii.gz" in {entry.image.name for entry in data.train_entries}


def test_subjects_are_on_one_side_of_the_split(tmp_path, small_config, save_scan, ball):
    for subject, session in [("01", "a"), ("02", "a"), ("03", "a"), ("03", "b")]:
        name = f"sub-{subject}_ses-{session}_T1w.nii.gz"
        save_scan(tmp_path / "scans" / f"sub-{subject}" / name, ball())
    data = S2DCDataModule(small_config(tmp_path / "scans", validation_volumes=1))
    data.setup()
    assert [entry.image.name for entry in data.validation_entries] == ["sub-03_ses-b_T1w.nii.gz"]
    assert [entry.image.parent.name for entry in data.train_entries] == ["sub-01", "sub-02"]
    assert "1 more scans of the held-out subjects" in data.notes[0]


def test_validation_items_are_fixed(ready):
    items = list(ready.validation_items())
    assert [item["start"].tolist() for item in items] == [[3, 4, -2], [4, 4, -2]]
    assert same(
        [{name: torch.as_tensor(value) for name, value in item.items()} for item in items],
        [
            {name: torch.as_tensor(value) for name, value in item.items()}
            for item in ready.validation_items()
        ],
    )


def test_bad_scans_are_listed_and_the_others_used(scan_folder, small_config, save_scan, ball):
    rows = [{"image": f"imagesTr/case_{number}.nii.gz"} for number in range(5)]
    rows.append({"image": "imagesTr/nowhere.nii.gz"})
    save_scan(scan_folder / "imagesTr" / "case_1.nii.gz", ball() * 0 + 3)
    (scan_folder / "imagesTr" / "case_2.nii.gz").write_text("not a scan")
    (scan_folder / "dataset.json").write_text(json.dumps({"training": rows}))
    data = S2DCDataModule(small_config(scan_folder))
    data.setup()
    assert {path.name: bool(reason) for path, reason in data.skipped} == {
        "nowhere.nii.gz": True,
        "case_2.nii.gz": True,
        "case_1.nii.gz": True,
    }
    assert len(data.train_entries + data.validation_entries) == 3
    assert data.preflight_report is not None
    assert "3 usable, 3 skipped" in str(data.preflight_report)


def test_no_usable_values_is_one_sentence(tmp_path, save_scan, ball, small_config):
    for number in range(2):
        save_scan(tmp_path / "data" / f"{number}.nii.gz", ball() * 0 + 3)
    with pytest.raises(S2DCError, match=r"None of the 2 scans can be used; .*0\.nii\.gz"):
        S2DCDataModule(small_config(tmp_path / "data")).setup()


def test_settings_are_checked_at_once(scan_folder, small_config):
    with pytest.raises(ConfigurationError, match=r"data\.batch_size"):
        S2DCDataModule(small_config(scan_folder, batch_size=0))
    with pytest.raises(ConfigurationError, match="No cache folder is named"):
        S2DCDataModule(small_config(scan_folder, cache_dir=""))


def test_cache_lies_in_the_run_folder_by_default(tmp_path, scan_folder, small_config):
    data = S2DCDataModule(small_config(scan_folder, cache_dir=""), run_dir=tmp_path / "run")
    data.setup()
    assert len(list((tmp_path / "run" / "cache").glob("*/image.npy"))) == 5


class Listener(lightning.LightningModule):
    """Notes which samples arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.samples: list[int] = []

    def training_step(self, batch: dict, index: int) -> torch.Tensor:
        self.samples += batch["sample"].tolist()
        return self.weight * batch["image"].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: S2DCDataModule, folder: Path, steps: int, checkpoint: Path | None = None) -> Listener:
    listener = Listener()
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(listener, datamodule=data, ckpt_path=checkpoint, weights_only=False)
    trainer.save_checkpoint(folder / "last.ckpt")
    return listener


@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice on workers and loggers
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_lightning_continues_the_samples_from_a_checkpoint(tmp_path, scan_folder, small_config):
    config = small_config(scan_folder, batch_size=2)
    assert fit(S2DCDataModule(config), tmp_path, 3).samples == list(range(6))
    resumed = S2DCDataModule(config)
    assert fit(resumed, tmp_path, 5, tmp_path / "last.ckpt").samples == [6, 7, 8, 9]
    assert resumed.notes == []
    again = S2DCDataModule(config)
    assert fit(again, tmp_path, 6, tmp_path / "last.ckpt").samples == [10, 11]


def test_resume_with_other_scans_is_said(ready):
    state = ready.state_dict()
    assert (state["next_sample"], state["seed"]) == (0, 5)
    ready.load_state_dict({**state, "next_sample": 40, "scans": ["other.nii.gz"]})
    assert ready.start_sample == 40
    assert "Other scans than before the resume" in ready.notes[-1]


def test_a_single_subject_is_said(tmp_path, small_config, save_scan, ball):
    for session in "abc":
        save_scan(tmp_path / "scans" / f"sub-01_ses-{session}_T1w.nii.gz", ball())
    data = S2DCDataModule(small_config(tmp_path / "scans", validation_volumes=1))
    data.setup()
    assert len(data.train_entries) == 2
    assert "Every scan is of a held-out subject" in data.notes[0]
