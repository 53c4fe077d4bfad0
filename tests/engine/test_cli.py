"""``s2dc`` says what a file is, exports weights that MONAI takes, and reports errors in a line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.networks.nets import SwinUNETR

from napari_s2dc import __version__
from napari_s2dc.engine.cli import main
from napari_s2dc.engine.console import command_line, run_reporting_errors
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.embedding_file import save_embedding
from napari_s2dc.engine.fewshot_settings import SegmentationClass
from napari_s2dc.engine.quick_features import Projection
from napari_s2dc.engine.quick_head import QuickHead, tensors_of
from napari_s2dc.engine.segmentation_model import SegmentationModel
from napari_s2dc.errors import ConfigurationError
from napari_s2dc.method.encoder import EncoderConfig, SwinEncoder

CONFIG = EncoderConfig(feature_size=12, window_size=4)


@pytest.fixture(scope="module")
def encoder() -> SwinEncoder:
    torch.manual_seed(5)
    return SwinEncoder(CONFIG)


@pytest.fixture
def run(encoder: SwinEncoder, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    encoder.save(folder / "encoder.safetensors", {"steps": 42, "data": {"volumes": 12}})
    return folder


def test_info_describes_our_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(run / "encoder.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "napari-s2dc encoder" in printed
    assert "(100.0 %)" in printed
    assert "tiny" in printed
    assert "window_size" in printed
    assert '{"volumes": 12}' in printed
    assert __version__ in printed


def test_info_takes_the_name_of_a_bundled_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "S2DC tiny any contrast", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metadata"]["name"] == "S2DC tiny any contrast"
    assert main(["info", "S2DC huge"]) == 2
    assert "S2DC huge" in capsys.readouterr().err


def test_info_json_of_a_run_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "checkpoint"
    assert facts["path"] == str(run / "encoder.safetensors")
    assert facts["architecture"] == {**CONFIG.as_dict(), "size": "tiny"}
    assert facts["metadata"]["steps"] == 42
    assert facts["report"]["fraction"] == 1
    assert "patch_embed.proj.weight" in facts["report"]["matched"]


def test_info_takes_the_training_checkpoint_of_an_unfinished_run(
    encoder: SwinEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    state = {f"student.encoder.swin.{k}": v for k, v in encoder.swin.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 7}, tmp_path / "checkpoints" / "last.ckpt")
    assert main(["info", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["layout"] == "napari-s2dc training checkpoint (Lightning)"
    assert facts["metadata"]["steps"] == 7


def test_info_prints_the_report_of_what_it_refuses(
    encoder: SwinEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {k: v for k, v in encoder.swin.state_dict().items() if "layers3." not in k}
    torch.save(state, tmp_path / "weights.pt")
    assert main(["info", str(tmp_path / "weights.pt")]) == 2
    captured = capsys.readouterr()
    assert "    layers3.0.blocks.0.norm1.weight\n" in captured.out
    assert captured.err.startswith("s2dc: error: Only ")
    assert "layers3.0.blocks.0.norm1.weight (missing)" in captured.err
    assert captured.err.count("\n") == 1


def test_info_describes_a_segmentation_model(
    encoder: SwinEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = QuickHead(inputs=1 + 3 + 2, hidden=4, outputs=2)
    path = SegmentationModel(
        kind="quick",
        encoder=encoder,
        tensors=tensors_of(head, [Projection(torch.zeros(48), torch.ones(48, 2))]),
        classes=(SegmentationClass(300, "liver", (1.0, 0.5, 0.0)),),
        preset="mr",
        metadata={"scans": [{"name": "a"}, {"name": "b"}], "stages": [2], "smoothing_vox": [0.0]},
    ).save(tmp_path / "model.safetensors")
    assert main(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{path}: segmentation model, written by s2dc finetune")
    assert "300 liver" in shown
    assert "a, b" in shown
    assert main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["mode"]) == ("segmentation model", "quick")
    assert facts["classes"][0]["name"] == "liver"


def test_info_describes_a_file_of_features(
    embedding: Embedding, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_embedding(embedding, tmp_path / "torso.embedding.safetensors")
    assert main(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{path}: features of a scan, written by s2dc embed\n")
    assert f"{embedding.stride} voxels" in shown
    assert main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "embedding"
    assert facts["patches_zyx"] == list(embedding.grid)


def test_info_describes_a_scan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scan.nii.gz"
    voxels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1.5, 2.0, 1.0])), path)
    assert main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "scan"
    assert facts["shape_zyx"] == [6, 5, 4]
    assert facts["spacing_mm"] == pytest.approx([2.0, 1.5, 1.0])
    assert main(["info", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "6 x 5 x 4" in printed
    assert "2 x 1.5 x 1" in printed
    assert "int16" in printed


@pytest.mark.parametrize("from_folder", [True, False])
@pytest.mark.parametrize("use_v2", [True, False])
def test_export_fits_swin_unetr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], from_folder: bool, use_v2: bool
) -> None:
    source = SwinEncoder(EncoderConfig(feature_size=12, window_size=4, use_v2=use_v2))
    run = tmp_path / "run"
    source.save(run / "encoder.safetensors")
    argument = run if from_folder else run / "encoder.safetensors"
    name = "monai-swin-unetr.pt" if from_folder else "encoder-monai-swin-unetr.pt"
    assert main(["export", str(argument), "--format", "monai-swin-unetr"]) == 0

    weights = torch.load(run / name, weights_only=True)
    network = SwinUNETR(1, 5, feature_size=12, window_size=4, use_v2=use_v2)
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert not unexpected
    assert not [key for key in missing if key.startswith("swinViT")]
    loaded = network.swinViT.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in source.swin.state_dict().items())

    # what it prints must work as it stands
    printed = capsys.readouterr().out
    assert str(run / name) in printed
    code = "\n".join(line.strip() for line in printed.splitlines()[1:])
    scope: dict[str, object] = {}
    exec(code, scope)
    assert isinstance(scope["network"], SwinUNETR)


def test_an_encoder_of_borders_is_not_exported_to_monai(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "encoder.safetensors"
    SwinEncoder(EncoderConfig(feature_size=12, window_size=4, borders=True)).save(path)
    assert main(["export", str(path), "--format", "monai-swin-unetr"]) == 2
    assert f"The encoder in {path} looks at the borders of tissues" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_export_to_a_named_file(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "weights.pt"
    assert main(["export", str(run), "--format", "monai-swin-unetr", "--out", str(out)]) == 0
    assert out.is_file()
    assert SwinEncoder.from_checkpoint(out).config == CONFIG


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["info", "{tmp}/missing.pt"], "There is no"),
        (["info", "{tmp}/missing.nii.gz"], "missing.nii.gz"),
        (["info", "{tmp}/page.safetensors"], "is not a checkpoint"),
        (["info", "{tmp}/notes.txt"], "notes.txt"),
        (["export", "{tmp}/missing"], "There is no run folder or checkpoint file"),
        (["export", "{tmp}/empty"], "holds neither encoder.safetensors nor"),
        (["export", "{tmp}/run", "--out", "{tmp}/empty"], "is a folder"),
        (["export", "{tmp}/run", "--out", "{tmp}/run/encoder.safetensors"], "itself"),
        (["export", "{tmp}/run", "--out", "{tmp}/notes.txt/weights.pt"], "Cannot write"),
        (["demo", "--minutes", "0"], "--minutes must be above 0"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    arguments: list[str],
    sentence: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.safetensors").write_text("<html>Not found</html>")
    (tmp_path / "notes.txt").write_text("not a scan")
    before = (run / "encoder.safetensors").read_bytes()
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("s2dc: error: ")
    assert captured.err.count("\n") == 1
    assert sentence in captured.err
    assert (run / "encoder.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["export", "x", "--format", "onnx"], ["info", "x", "--no"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("s2dc: error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("embed x --stage x", "--stage x: a whole number is expected."),
        ("match a b --temperature nan", "--temperature nan: a number is expected."),
        ("demo --minutes x", "--minutes x: a number is expected."),
        ("match a --self-check 1.5", "--self-check 1.5: a whole number is expected."),
        (
            "transfer x --atlas a:b --out o --refine foo",
            "--refine foo: one of scans, pairs, none is expected.",
        ),
        ("finetune --images a --labels b --out c --seed x", "--seed x: a whole number is"),
        (
            "finetune --images a --labels b --out c --shots 0",
            "--shots 0: a whole number above 0 is",
        ),
        ("finetune --images a --labels b --out c --held-out -1", "error: --held-out: Not of type"),
        ("finetune --config nowhere.yaml", "error: --config: File does not exist: "),
        ("finetune --config {tmp}/text.nii --images a", "text.nii holds no settings."),
        ("finetune --config {tmp}/latin.yaml --images a", "latin.yaml is not a UTF-8 text file."),
        ("embed", "required: scans. See s2dc embed --help"),
        ("embed x --no-such", "--no-such"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    arguments: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.nii").write_text("hello")
    (tmp_path / "latin.yaml").write_bytes("mode: f\xfcnf".encode("latin-1"))
    assert main(arguments.format(tmp=tmp_path).split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("s2dc: error: ")
    assert sentence in captured.err
    assert captured.err.count("\n") == 1


def test_demo_is_handed_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, object]] = []
    module = types.ModuleType("napari_s2dc.engine.demo")
    module.run_demo = lambda **settings: calls.append(settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "napari_s2dc.engine.demo", module)
    assert main(["demo", "--out", str(tmp_path), "--minutes", "0.5"]) == 0
    assert main(["demo"]) == 0
    assert calls == [
        {"out": tmp_path, "minutes": 0.5},
        {"out": Path("demo"), "minutes": 2.0},
    ]


def test_interrupt_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert run_reporting_errors(interrupted, "s2dc-train") == 130
    assert capsys.readouterr().err == "s2dc-train: interrupted\n"


def test_quoted_messages_stay_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> int:
        raise ConfigurationError("The library said:\n  no.", "Say yes.")

    assert run_reporting_errors(fails, "s2dc-train") == 2
    assert capsys.readouterr().err == "s2dc-train: error: The library said: no. Say yes.\n"


def test_faults_of_the_program_keep_their_traceback() -> None:
    def fails() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_reporting_errors(fails, "s2dc")


def test_reader_that_goes_away_is_no_error() -> None:
    program = (
        "import sys; from napari_s2dc.engine.console import run_reporting_errors as run\n"
        "sys.exit(run(lambda: print('line\\n' * 100000), 's2dc'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert errors == b""


def test_help_is_light_and_every_argument_has_a_sentence() -> None:
    program = """
import sys
from napari_s2dc.engine import cli
try:
    cli.main(["--help"])
except SystemExit as stop:
    assert stop.code == 0
for action in cli._parser()._subcommands_action.choices.values():
    for argument in action._actions:
        assert argument.help and len(argument.help.split()) > 2, argument
heavy = {"torch", "monai", "lightning", "ot", "sklearn", "qtpy", "napari", "numpy"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    assert "info" in finished.stdout
    assert "export" in finished.stdout
    assert "demo" in finished.stdout


def test_letters_that_the_output_lacks_are_escaped() -> None:
    """As where output goes into a file on Windows, whose encoding is of 8 bits."""
    program = (
        "import sys; from napari_s2dc.engine.console import run_reporting_errors as run\n"
        "sys.exit(run(lambda: print('3 \xd7 3, \u809d.nii'), 's2dc'))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
        check=False,
        timeout=60,
    )
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert finished.stdout.split(b", ") == [b"3 \xd7 3", b"\\u809d.nii" + os.linesep.encode()]


def test_command_lines_are_those_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["s2dc-train", "--out", "my run"]
    assert command_line(arguments) == "s2dc-train --out 'my run'"
    monkeypatch.setattr(sys, "platform", "win32")
    assert command_line(arguments) == 's2dc-train --out "my run"'
