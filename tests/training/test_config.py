"""The packaged configurations and the help of every setting."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from s2dc_train import config as settings
from s2dc_train.checks import check_configuration
from s2dc_train.cli import _parse, _parser, main, presets
from s2dc_train.config import RunConfig, changed_settings, run_config
from s2dc_train.module import S2DCModule

PRESETS = sorted(presets())


def names(kind: type, prefix: str = "") -> list[str]:
    """Return every setting as it is written on the command line."""
    hints = get_type_hints(kind)
    result = []
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            result += names(hints[field.name], f"{prefix}{field.name}.")
        else:
            result.append(prefix + field.name)
    return result


def parse(*arguments: str) -> RunConfig:
    parsed = _parse(_parser(), arguments)
    parsed.pop("ckpt")
    parsed.pop("config", None)
    return run_config(parsed.as_dict())


def test_devices_may_be_a_number_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for written, read in (("2", 2), ("'2'", 2), ("auto", "auto"), ("'0,1'", "0,1")):
        path.write_text(f"trainer: {{devices: {written}}}\n")
        assert str(parse("--config", str(path)).trainer.devices) == str(read)
    assert str(parse("--trainer.devices", "2").trainer.devices) == "2"


def test_the_small_configuration_is_there() -> None:
    assert "tiny_cpu" in PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_packaged_configuration_parses_and_builds(name: str) -> None:
    config = parse("--config", name, "--data.path", "scans")
    check_configuration(config)
    module = S2DCModule(config)
    assert module.student.encoder.config.window_size == config.model.window_size
    # Every crop must hold a whole number of windows' worth of tokens at the matched stage.
    assert config.data.crop_size % module.token_size_vox == 0


@pytest.mark.parametrize("name", PRESETS)
def test_packaged_configuration_says_what_it_is_for(name: str) -> None:
    assert Path(presets()[name]).read_text(encoding="utf-8").startswith("# ")


def test_tiny_cpu_is_read_and_the_command_line_wins() -> None:
    stored = yaml.safe_load(Path(presets()["tiny_cpu"]).read_text(encoding="utf-8"))
    config = parse("--config=tiny_cpu", "--trainer.max_steps", "7", "--data.grid", "[1, 3, 3]")
    assert config.data.crop_size == stored["data"]["crop_size"]
    assert config.trainer.max_steps == 7
    assert config.data.grid == [1, 3, 3]


def test_saved_settings_are_read_back_unchanged(tmp_path: Path) -> None:
    from dataclasses import asdict

    config = parse("--config", "tiny_cpu", "--data.spacing_mm", "[1, 2.5, 2.5]", "--seed", "4")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(asdict(config)))
    assert parse("--config", str(path)) == config


def test_changed_settings_are_named_with_both_values() -> None:
    before = asdict(RunConfig(out="elsewhere", seed=3))
    before["model"]["initial_weights"] = "gone.pt"
    before["views"]["scale_min"] = 0.5
    del before["loss"]["dustbin"]  # a setting that an earlier version did not have
    assert changed_settings(RunConfig(), before) == [
        "seed 0 (was 3)",
        "views.scale_min 0.9 (was 0.5)",
    ]


def test_help_has_a_sentence_for_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    usage, _, listed = text.partition("Pretrain an S2DC encoder")
    assert "usage: s2dc-train" in usage
    documented = names(RunConfig)
    assert len(documented) > 50
    # Python 3.13 names both spellings of an option before its one value: "--name, --name+ VALUE".
    found = [re.search(rf" --{re.escape(name)}[ ,]", listed) for name in documented]
    positions = [match.start() for match in found if match]
    assert len(positions) == len(documented)
    ends = [*sorted(positions)[1:], len(listed)]
    for start, end in zip(sorted(positions), ends, strict=True):
        entry = listed[start:end]
        # Name and value, then a sentence, then type and default in brackets.
        assert re.search(r"[A-Za-z].*\w \w.* \w.*\(type: ", entry), entry
        sentence = re.sub(r"^( --\S+)+ (\{.*?\}|\[.*?\]|\S+)", "", entry).split("(type:")[0]
        assert len(sentence.split()) >= 2, entry


def test_every_setting_has_its_own_docstring() -> None:
    """The attribute docstrings are what ``--help`` shows."""
    source = Path(settings.__file__).read_text(encoding="utf-8")
    for name in names(RunConfig):
        field = name.rpartition(".")[2]
        assert re.search(rf'^    {field}: .*(\n    .*)*?\n    """\S', source, re.MULTILINE), name


def test_help_and_print_config_do_not_wait_for_torch() -> None:
    program = """
import sys
from s2dc_train.cli import main
try:
    main(["--config", "tiny_cpu", "--data.path", "scans", "--print_config"])
except SystemExit as stop:
    assert not stop.code
heavy = {"torch", "monai", "lightning", "ot", "sklearn", "nibabel"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    printed: dict[str, Any] = yaml.safe_load(finished.stdout)
    assert printed["data"]["path"] == "scans"
    assert printed["model"]["size"] == "tiny"
