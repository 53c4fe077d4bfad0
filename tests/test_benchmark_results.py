"""All benchmarks by one command: what is run, what is left out, what the JSON holds."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as everything
from benchmarks import report, results

SECTION = """
## A title

One sentence. Another.

| part  |              ours, ms | ratio |
|-------|----------------------:|------:|
| views |     18.3 [17.5, 19.2] |  1e-3 |
| all   |           0.8 ± 0.05  |       |

    python -m benchmarks.step --write
"""


def test_sections_are_read_as_values(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    report.write_section("step tiny cpu", SECTION, document)
    report.write_section("other", "## Other", document)
    found = results.read(document)
    assert list(found) == ["step tiny cpu", "other"]
    step = found["step tiny cpu"]
    assert step["title"] == "A title"
    assert step["text"] == ["One sentence. Another."]
    assert step["command"] == "python -m benchmarks.step --write"
    assert step["tables"] == [
        [
            {
                "part": "views",
                "ours, ms": {"median": 18.3, "quartiles": [17.5, 19.2]},
                "ratio": 0.001,
            },
            {"part": "all", "ours, ms": {"mean": 0.8, "deviation": 0.05}, "ratio": ""},
        ]
    ]


def test_every_section_of_the_page_can_be_read() -> None:
    found = results.read(report.DOCUMENT)
    assert len(found) > 5
    assert all(section["title"] and section["tables"] for section in found.values())


def test_every_command_exists() -> None:
    listed = [b.module for device in everything.BENCHMARKS.values() for b in device]
    for name in {*listed, *everything.NEED_MORE}:
        assert importlib.util.find_spec(f"benchmarks.{name}"), name


def test_windows_are_left_out_without_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    wanted, left_out = everything.chosen(everything.parse([]))
    assert wanted
    assert not any(benchmark.screen for benchmark in wanted)
    assert any("interactive" in sentence for sentence in left_out)


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        everything.parse(["--only", "nothing"])
    assert "no nothing among" in capsys.readouterr().err


@pytest.mark.parametrize(("minutes", "code"), [(1.0, 0), (0.0, 1)])
def test_results_of_this_run_come_as_json(
    minutes: float,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    document, file = tmp_path / "benchmarks.md", tmp_path / "results.json"
    report.write_section("old", "## Old", document)
    monkeypatch.setattr(report, "DOCUMENT", document)
    # A program that writes as the benchmarks do.
    writing = (
        "import sys, pathlib; from benchmarks.report import write_section; "
        "write_section('new', pathlib.Path(sys.argv[2]).read_text(), pathlib.Path(sys.argv[1]))"
    )
    (tmp_path / "section.md").write_text(SECTION)
    command = ["-c", writing, str(document), str(tmp_path / "section.md")]
    monkeypatch.setattr(everything.Benchmark, "command", command)
    arguments = ["--only", "embedding", "--minutes", str(minutes), "--json", str(file)]
    assert everything.main(arguments) == code
    content = json.loads(file.read_text())
    assert {"cores", "processor", "memory_gb", "torch", "monai", "POT"} <= set(content["machine"])
    assert list(content["sections"]) == ([] if code else ["new"])
    assert len(content["seconds"]) == 1 - code
    assert ("minutes were over" in capsys.readouterr().out) == bool(code)
