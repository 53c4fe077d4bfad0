from __future__ import annotations

import json
from pathlib import Path

import pytest
from s2dc_train.config import DataConfig
from s2dc_train.sources import ScanEntry, find_scans

from napari_s2dc.errors import ConfigurationError, S2DCError
from napari_s2dc.volumes.io import read_volume, write_volume


def names(entries: list[ScanEntry]) -> list[tuple[str, str | None]]:
    return [(entry.image.name, entry.label.name if entry.label else None) for entry in entries]


def touch(folder: Path, *files: str) -> None:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_folder_is_searched_with_its_subfolders_and_sorted(tmp_path, save_scan):
    for name in ("b/two.nii.gz", "a/deep/one.nii", "three.nii.gz"):
        save_scan(tmp_path / name)
    touch(tmp_path, "notes.docx", ".hidden.nii.gz", "a/._one.nii")
    entries = find_scans(DataConfig(path=str(tmp_path)))
    assert names(entries) == [("one.nii", None), ("two.nii.gz", None), ("three.nii.gz", None)]


def test_label_folders_are_paired_and_never_count_as_scans(scan_folder):
    entries = find_scans(DataConfig(path=str(scan_folder)))
    assert [entry.image.parent.name for entry in entries] == ["imagesTr"] * 5
    for entry in entries:
        assert entry.label == scan_folder / "labelsTr" / entry.image.name


def test_label_folder_of_numbered_channels(tmp_path):
    touch(tmp_path, "imagesTr/case_1_0000.nii.gz", "imagesTr/case_1_0001.nii.gz")
    touch(tmp_path, "labelsTr/case_1.nii.gz", "labelsTr/orphan.nii.gz")
    assert names(find_scans(DataConfig(path=str(tmp_path)))) == [
        ("case_1_0000.nii.gz", "case_1.nii.gz"),
        ("case_1_0001.nii.gz", "case_1.nii.gz"),
    ]


def test_label_beside_its_scan_is_known_by_its_ending(tmp_path):
    touch(tmp_path, "head.nrrd", "head.seg.nrrd", "knee.nii.gz", "knee_mask.nii.gz")
    assert names(find_scans(DataConfig(path=str(tmp_path)))) == [
        ("head.nrrd", "head.seg.nrrd"),
        ("knee.nii.gz", "knee_mask.nii.gz"),
    ]


@pytest.fixture
def decathlon(tmp_path) -> Path:
    content = {
        "name": "example",
        "labels": {"0": "background"},
        "tensorImageSize": ["3D"],
        "training": [
            {"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz"},
            {"image": "./imagesTr/a.nii.gz"},
        ],
        "test": ["./imagesTs/c.nii.gz", "./imagesTr/a.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path


def test_what_the_tools_wrote_is_no_scan_but_may_be_labels(tmp_path, save_scan):
    scan = read_volume(save_scan(tmp_path / "case.nii.gz"))
    write_volume(tmp_path / "case.similarity.nii.gz", scan.array, scan, result="similarity map")
    write_volume(tmp_path / "case_seg.nii.gz", scan.array, scan, result="label map")
    entries = find_scans(DataConfig(path=str(tmp_path)))
    assert names(entries) == [("case.nii.gz", "case_seg.nii.gz")]


def test_dataset_json_of_a_folder_takes_every_section_once(decathlon):
    entries = find_scans(DataConfig(path=str(decathlon)))
    assert names(entries) == [
        ("a.nii.gz", None),
        ("b.nii.gz", "b.nii.gz"),
        ("c.nii.gz", None),
    ]
    assert entries[1].image == decathlon / "imagesTr" / "b.nii.gz"
    assert entries == find_scans(DataConfig(path=str(decathlon / "dataset.json")))


def test_one_section_can_be_chosen(decathlon):
    entries = find_scans(DataConfig(path=str(decathlon), section="test"))
    assert names(entries) == [("a.nii.gz", None), ("c.nii.gz", None)]


def test_unknown_section_names_those_there_are(decathlon):
    with pytest.raises(S2DCError, match=r'no section "validation".*training, test'):
        find_scans(DataConfig(path=str(decathlon), section="validation"))


def test_dataset_json_without_lists_leaves_it_to_the_folder(scan_folder):
    (scan_folder / "dataset.json").write_text('{"channel_names": {"0": "T2"}, "numTraining": 5}')
    assert len(find_scans(DataConfig(path=str(scan_folder)))) == 5


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "label,image\n,one.nii.gz\nlab/two.nii.gz,img/two.nii.gz\n"),
        ("list.csv", "\ufeffImage;Label\none.nii.gz;\nimg/two.nii.gz;lab/two.nii.gz\n"),
        ("list.txt", "image\tlabel\n# comment\n\none.nii.gz\nimg/two.nii.gz\tlab/two.nii.gz\n"),
    ],
)
def test_list_with_columns(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert find_scans(DataConfig(path=str(tmp_path / name))) == [
        ScanEntry(tmp_path / "img" / "two.nii.gz", tmp_path / "lab" / "two.nii.gz"),
        ScanEntry(tmp_path / "one.nii.gz"),
    ]


def test_list_without_header_is_its_first_column(tmp_path):
    absolute = tmp_path / "elsewhere" / "two.nii.gz"
    (tmp_path / "list.txt").write_text(f"one.nii.gz\n{absolute}\none.nii.gz\n")
    assert find_scans(DataConfig(path=str(tmp_path / "list.txt"))) == [
        ScanEntry(absolute),
        ScanEntry(tmp_path / "one.nii.gz"),
    ]


def test_single_scan(tmp_path, save_scan):
    path = save_scan(tmp_path / "one.nii.gz")
    assert find_scans(DataConfig(path=str(path))) == [ScanEntry(path)]


def write(name: str, text: str | bytes):
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: "", "No scans are named"),
        (lambda folder: folder / "nowhere", r"nowhere does not exist"),
        (lambda folder: folder, r"No scan was found in .*NIfTI"),
        (write("scan.docx", ""), r"scan\.docx is neither a folder"),
        (write("list.csv", "\n\n"), r"list\.csv lists no scans"),
        (write("list.csv", "image,label\n"), r"No scan was found in .*list\.csv"),
        (write("list.txt", b"\xff\xfe\x00sc\xe9n"), r"list\.txt is not a UTF-8 text file"),
        (write("dataset.json", '{"training": [\n'), r"not valid JSON: .* in line 2"),
        (write("dataset.json", "[1, 2]"), "holds no named sections"),
        (write("dataset.json", '{"training": []}'), "no section that lists images"),
        (
            write("dataset.json", '{"training": [{"image": "a.nii"}, {"label": "b.nii"}]}'),
            r'"image" of training\[1\] is not a file name',
        ),
    ],
)
def test_what_cannot_be_understood_is_one_sentence(tmp_path, make, sentence):
    with pytest.raises(S2DCError, match=sentence):
        find_scans(DataConfig(path=str(make(tmp_path))))


def test_section_without_dataset_json_is_refused(scan_folder):
    with pytest.raises(S2DCError, match=r"holds no dataset\.json"):
        find_scans(DataConfig(path=str(scan_folder), section="training"))


def test_folder_without_permission(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("s2dc_train.sources.find_volumes", refuse)
    with pytest.raises(S2DCError, match=r"cannot be read: Permission denied"):
        find_scans(DataConfig(path=str(tmp_path)))


def test_json_nested_without_end_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "dataset.json"
    file.write_text("[" * 100_000)
    with pytest.raises(ConfigurationError, match="nested too deeply"):
        find_scans(DataConfig(path=str(file)))


def test_list_with_an_endless_cell_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "scans.csv"
    file.write_text("image\n" + "x" * 200_000 + "\n")
    with pytest.raises(ConfigurationError, match="cannot be read as a list"):
        find_scans(DataConfig(path=str(file)))
