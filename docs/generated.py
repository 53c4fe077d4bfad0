"""Fill in what the pages take from the code: commands, preferences, settings and presets.

A hook of MkDocs: a line ``<!-- generated: NAME -->`` in a page becomes what the code says, so that
the page cannot disagree with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

_ROOT = Path(__file__).resolve().parent.parent
_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>")
_LINE = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marked lines of a page (called by MkDocs)."""
    return _LINE.sub(lambda found: _PARTS[found[1]](), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Take Sphinx's roles out of docstrings (called by MkDocs)."""
    return _ROLE.sub("<code>", html)


def _help_of(*arguments: str) -> str:
    from napari_s2dc.engine.cli import main

    os.environ["COLUMNS"] = "76"  # as wide as a page
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*arguments, "--help"])
    return printed.getvalue().strip()


def _commands() -> str:
    listed = _help_of().partition("Available subcommands:")[2]
    names = re.findall(r"^ {4}([a-z]+)\b", listed, re.MULTILINE)
    sections = []
    for name in names:
        usage, summary, *options = _help_of(name).split("\n\n")
        usage = " ".join(usage.split()).removeprefix("usage: ").replace(" [options]", "")
        usage = textwrap.fill(usage, 76, subsequent_indent=" " * 4, break_on_hyphens=False)
        sections.append(
            "\n\n".join(
                (
                    f"## s2dc {name}",
                    " ".join(summary.split()),
                    _code("\n\n".join((usage, *options))),
                )
            )
        )
    return "\n\n".join(sections)


def _code(text: str) -> str:
    return f"```text\n{text}\n```"


def _preferences() -> str:
    manifest = yaml.safe_load((_ROOT / "napari_s2dc" / "napari.yaml").read_text(encoding="utf-8"))
    lines = []
    for group in manifest["contributions"]["configurations"].values():
        lines += [f"## {group['title']}", "", "| setting | default | meaning |", "|---|---|---|"]
        for setting in group["properties"].values():
            default = setting["default"] if setting["default"] != "" else "empty"
            lines.append(f"| {setting['title']} | {default} | {setting['description']} |")
        lines.append("")
    return "\n".join(lines)


def _settings() -> str:
    from docstring_parser import parse_from_object
    from s2dc_train.config import RunConfig

    def table(config: Any, prefix: str) -> list[str]:
        lines = ["", "| setting | default | meaning |", "|---|---|---|"]
        for setting in parse_from_object(type(config)).params:
            name = setting.arg_name
            value = getattr(config, name)
            if dataclasses.is_dataclass(value):
                continue
            default = f"`{value}`" if value not in ("", []) else "empty"
            text = (setting.description or "").replace("``", "`")
            lines.append(f"| `{prefix}{name}` | {default} | {text} |")
        return [*lines, ""]

    run = RunConfig()
    lines = table(run, "")
    for field in dataclasses.fields(run):
        part = getattr(run, field.name)
        if dataclasses.is_dataclass(part):
            lines += [f"### {field.name}", "", str(type(part).__doc__)]
            lines += table(part, f"{field.name}.")
    return "\n".join(lines)


def _presets() -> str:
    folder = _ROOT / "training" / "s2dc_train" / "configs"
    parts = []
    for path in sorted(folder.glob("*.yaml")):
        parts += [f"### {path.stem}", f"```yaml\n{path.read_text(encoding='utf-8').strip()}\n```"]
    return "\n\n".join(parts)


_PARTS = {
    "commands": _commands,
    "preferences": _preferences,
    "presets": _presets,
    "settings": _settings,
}
