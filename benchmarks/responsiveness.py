"""How long the window stands still: opening the workbench, reading the encoder, embedding.

Needs a screen; without one: ``xvfb-run -a python -m benchmarks.responsiveness``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PHASES = ("waiting", "opening", "reading the encoder", "embedding", "showing the colours")
HEAVY = ("torch", "monai", "ot", "sklearn", "umap", "lightning")
_TICK_MS = 5
_WAIT_SECONDS = 180.0


class Pulse:
    """A Qt timer that beats every 5 ms; a gap between beats is a time when nothing else could run.

    Attributes
    ----------
    gaps : dict
        Milliseconds between beats, by the phase in which they ended.
    """

    def __init__(self) -> None:
        from qtpy.QtCore import Qt, QTimer

        self.gaps: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self.phase = PHASES[0]
        self._last = time.perf_counter()
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.setInterval(_TICK_MS)
        self._timer.timeout.connect(self._beat)
        self._timer.start()

    def _beat(self) -> None:
        now = time.perf_counter()
        self.gaps[self.phase].append(1e3 * (now - self._last))
        self._last = now

    def during(self, phase: str, until: Callable[[], bool], more_seconds: float = 0.0) -> None:
        """Let the window live until something holds, and a while longer."""
        from qtpy.QtCore import QEventLoop
        from qtpy.QtWidgets import QApplication

        self.phase = phase
        end = time.perf_counter() + _WAIT_SECONDS
        stop = None
        while stop is None or time.perf_counter() < stop:
            QApplication.processEvents(QEventLoop.ProcessEventsFlag.WaitForMoreEvents)
            if stop is None and until():
                stop = time.perf_counter() + more_seconds
            if time.perf_counter() > end:
                raise TimeoutError(f"{phase} did not end within {_WAIT_SECONDS:.0f} seconds")

    def summary(self) -> dict[str, dict[str, float]]:
        """Largest gap, and how many were longer than 50 ms, by phase."""
        return {
            phase: {"largest": max(gaps), "long": sum(gap > 50 for gap in gaps)}
            for phase, gaps in self.gaps.items()
            if gaps
        }


def _viewer_with(scan: Path) -> tuple[Any, Any]:
    """Open a viewer on a scan (z, y, x) and wait until it has painted itself."""
    import napari
    import numpy as np
    from qtpy.QtTest import QTest

    viewer = napari.Viewer(show=True)
    layer = viewer.add_image(
        np.load(scan), name="torso", scale=(2, 1.5, 1.5), contrast_limits=(-160, 240)
    )
    QTest.qWait(2000)
    return viewer, layer


def plain(scan: Path, colours: Path) -> dict[str, Any]:
    """Do in napari alone what the workbench makes it do: dock a widget, show colours."""
    import numpy as np
    from qtpy.QtWidgets import QLabel

    viewer, _ = _viewer_with(scan)
    pulse = Pulse()
    pulse.during("waiting", lambda: True, 1.0)
    pulse.phase = "opening"
    label = QLabel("nothing")
    label.setMinimumWidth(415)
    viewer.window.add_dock_widget(label, area="right")
    pulse.during("opening", label.isVisible, 0.5)
    pulse.phase = "showing the colours"
    viewer.add_image(
        np.load(colours), rgb=True, opacity=0.6, interpolation2d="linear", scale=(16, 12, 12)
    )
    pulse.during("showing the colours", lambda: True, 1.0)
    viewer.close()
    return {"gaps": pulse.summary()}


def workbench(scan: Path, colours: Path) -> dict[str, Any]:
    """Open the workbench as the menu does and embed the scan, with nothing heavy imported yet."""
    import numpy as np
    from qtpy.QtCore import QEvent, QObject

    viewer, layer = _viewer_with(scan)
    pulse = Pulse()
    pulse.during("waiting", lambda: True, 1.0)
    before = sorted(set(HEAVY) & set(sys.modules))

    pulse.phase = "opening"
    started = time.perf_counter()
    from napari_s2dc.widgets.commands import open_embed

    open_embed()
    opened = time.perf_counter() - started
    from napari_s2dc.widgets.workbench import Workbench

    docked = viewer.window.dock_widgets.values()
    bench = next(widget for widget in docked if isinstance(widget, Workbench))

    painted: list[float] = []

    class Paints(QObject):
        def eventFilter(self, watched: QObject, event: QEvent) -> bool:
            if event.type() == QEvent.Type.Paint:
                painted.append(time.perf_counter() - started)
            return False

    filter_ = Paints()
    bench.installEventFilter(filter_)
    pulse.during("opening", lambda: bool(painted))
    at_paint = sorted(set(HEAVY) & set(sys.modules))
    bench.removeEventFilter(filter_)
    pulse.during("reading the encoder", lambda: bench.session.encoder is not None, 1.0)

    button = bench.embed_tab.embed_button
    find = bench.session.overlays.find
    pulse.during("embedding", button.isEnabled)
    button.click()
    pulse.during("embedding", lambda: bench.session.embedded(layer) is not None)
    pulse.during("showing the colours", lambda: find(layer, "colours") is not None, 1.5)
    np.save(colours, find(layer, "colours").data)
    viewer.close()
    return {
        "gaps": pulse.summary(),
        "opened": 1e3 * opened,
        "painted": 1e3 * painted[0],
        "heavy": [before, at_paint],
    }


def light(scan: Path, colours: Path) -> dict[str, Any]:
    """Import the package."""
    begun = time.perf_counter()
    import napari_s2dc  # noqa: F401

    return {"import": 1e3 * (time.perf_counter() - begun)}


_SIDES = {"light": light, "plain": plain, "workbench": workbench}


def alone(side: str, folder: Path) -> dict[str, Any]:
    """Run a side in a process of its own, with its own settings, cache and encoder."""
    command = [sys.executable, "-m", "benchmarks.responsiveness", "--side", side, str(folder)]
    environment = {
        **os.environ,
        "NAPARI_CONFIG": "",
        "XDG_CACHE_HOME": tempfile.mkdtemp(dir=folder),
        "XDG_DATA_HOME": str(folder / "data"),
        # Modules are compiled before, as an installation does it.
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(folder / "compiled"),
    }
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def prepare(shape: Sequence[int], folder: Path) -> None:
    """Write the scan; the workbench finds the bundled encoder."""
    import numpy as np

    from napari_s2dc.volumes.phantom import phantom

    np.save(folder / "scan.npy", phantom(tuple(shape), seed=0)[0].array)


def _worst(values: Sequence[float], digits: int = 0) -> list[str]:
    return [f"{statistics.median(values):.{digits}f}", f"{max(values):.{digits}f}"]


def report(options: argparse.Namespace) -> str:
    """Measure and describe in markdown."""
    import torch

    from benchmarks.report import machine, table

    description = machine(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(options.shape, folder)
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in ("workbench", "plain")}
        imports = []
        alone("workbench", folder)  # compiles
        for _ in range(options.repeats):
            imports.append(alone("light", folder)["import"])
            for side, results in runs.items():
                results.append(alone(side, folder))
    times = [
        ["import napari_s2dc", *_worst(imports, 1)],
        ["workbench opened", *_worst([run["opened"] for run in runs["workbench"]])],
        ["workbench painted", *_worst([run["painted"] for run in runs["workbench"]])],
    ]
    rows = []
    for phase in PHASES:
        cells = []
        for side in ("workbench", "plain"):
            found = [run["gaps"][phase] for run in runs[side] if phase in run["gaps"]]
            cells += _worst([gaps["largest"] for gaps in found]) if found else ["", ""]
            cells.append(_worst([gaps["long"] for gaps in found])[0] if found else "")
        rows.append([phase, *cells])
    heavy = sorted({name for run in runs["workbench"] for at in run["heavy"] for name in at})
    loaded = f"loaded: {', '.join(heavy)}" if heavy else "none of them loaded"
    size = "×".join(map(str, options.shape))
    command = ["python", "-m", "benchmarks.responsiveness", "--shape", *map(str, options.shape)]
    command += ["--repeats", str(options.repeats)]
    header = ["largest gap between beats, ms", "ours, median", "worst", "over 50 ms"]
    header += ["napari alone, median", "worst", "over 50 ms"]
    return "\n\n".join(
        [
            "## Does the window stand still?",
            f"{options.repeats} fresh processes; a scan of {size} voxels, embedded on the CPU. "
            f"Until the workbench was painted, of {', '.join(HEAVY)}: {loaded}. {description}",
            table(["time, ms", "median", "worst"], times),
            f"A timer beats every {_TICK_MS} ms in the window's thread. *Napari alone* docks an "
            "empty widget and shows the same colours by `add_image`. The last column of each "
            "side counts, in the median, the gaps over 50 ms. Software OpenGL where there is no "
            "graphics card.",
            table(header, rows),
            f"    {shlex.join(command)}",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=[160, 256, 256], help="voxels z y x")
    parser.add_argument("--repeats", type=int, default=5, help="fresh processes")
    parser.add_argument("--write", action="store_true", help="put it into docs/benchmarks.md")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.side:
        side, folder = options.side[0], Path(options.side[1])
        print(json.dumps(_SIDES[side](folder / "scan.npy", folder / "colours.npy")))
        return
    text = report(options)
    print(text)
    if options.write:
        from benchmarks.report import write_section

        write_section("responsiveness", text)


if __name__ == "__main__":
    main()
