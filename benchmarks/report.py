"""Tables for the terminal and for ``docs/benchmarks.md``."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"

_HEADING = """# Benchmarks

Every figure here was written by a command of `benchmarks/`, which stands below it; nothing is
typed in. What is compared and how: `benchmarks/README.md`.
"""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown table with aligned columns, the first one to the left.

    Parameters
    ----------
    header : sequence of str
        Names of the columns.
    rows : sequence of sequences of str
        Cells, as many in each row as there are columns.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        aligned = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return "| " + " | ".join(aligned) + " |"

    rule = "|" + "|".join(
        "-" * (width + 2) if place == 0 else "-" * (width + 1) + ":"
        for place, width in enumerate(widths)
    )
    return "\n".join([line(header), rule + "|", *map(line, rows)])


def spread(values: Sequence[float], scale: float = 1e3, digits: int = 1) -> str:
    """Median, and of several the quartiles in brackets; seconds become milliseconds."""
    if len(values) == 1:
        return f"{values[0] * scale:.{digits}f}"
    first, median, third = (
        f"{value * scale:.{digits}f}"
        for value in statistics.quantiles(values, n=4, method="inclusive")
    )
    return f"{median} [{first}, {third}]"


def machine_facts(device: torch.device) -> dict[str, str | int | float]:
    """Return what counts of the machine and the libraries, by name."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for entry in information.read_text(encoding="utf-8").splitlines():
            if entry.startswith("model name"):
                processor = entry.partition(":")[2].strip()
                break
    facts: dict[str, str | int | float] = {}
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts |= {
        "cores": os.cpu_count() or 0,
        "processor": processor,
        "memory_gb": round(pages / 2**30),
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in ("torch", "monai", "POT")},
        "Python": platform.python_version(),
    }
    if hasattr(os, "getloadavg"):
        facts["load_average"] = round(os.getloadavg()[0], 1)
    return facts


def machine(device: torch.device) -> str:
    """One sentence on the machine and the libraries that count."""
    facts = machine_facts(device)
    parts = [str(facts["gpu"])] if "gpu" in facts else []
    parts += [
        f"{facts['cores']} cores ({facts['processor']})",
        f"{facts['memory_gb']} GB memory",
        f"{facts['threads']} threads",
        *(f"{name} {facts[name]}" for name in ("torch", "monai", "POT", "Python")),
    ]
    if "load_average" in facts:
        parts.append(f"load average {facts['load_average']} at the start")
    return ", ".join(parts) + "."


def write_section(name: str, text: str, document: Path = DOCUMENT) -> None:
    """Put a section between its markers, in the place it has or at the end.

    Parameters
    ----------
    name : str
        Name of the section's markers.
    text : str
        Markdown.
    document : Path
        File to write; created when missing, and what others wrote in it stays.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    content = document.read_text(encoding="utf-8") if document.is_file() else _HEADING
    before, found, rest = content.partition(begin)
    if found:
        content = before + section + rest.partition(end)[2]
    else:
        content = content.rstrip() + "\n\n" + section + "\n"
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(content, encoding="utf-8")
