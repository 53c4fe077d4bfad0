"""The wheel, as a person gets it: what it holds, what it pulls in, and that its commands run.

The fresh environment of these tests holds links to the installed copies of exactly the packages
that the wheel's metadata asks for, directly or through others. So nothing is downloaded, and a
dependency that was forgotten is missed here although the development environment has it.
"""

from __future__ import annotations

import ast
import os
import re
import stat
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import napari_s2dc

KERNELS = ("norms_gpu.py", "window_attention_gpu.py")
ROOT = Path(__file__).resolve().parents[1]
QT_AND_NAPARI = {"napari", "pyqt5", "pyqt6", "pyside2", "pyside6", "pyside6-essentials"}
HEAVY = {"itk", "lightning", "monai", "nibabel", "ot", "skimage", "sklearn", "torch", "umap"}

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside the source tree; return what it printed, fail with it otherwise."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    """Whether a requirement counts on this machine when these extras are asked for."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def closure(requirements: Iterable[Requirement]) -> set[str]:
    """Every package that installing these requirements brings, by canonical name."""
    found: set[tuple[str, str]] = set()
    waiting = [requirement for requirement in requirements if applies(requirement, ())]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        new = {(name, extra) for extra in ("", *requirement.extras)} - found
        found |= new
        try:
            lines = distribution(name).requires or [] if new else []
        except PackageNotFoundError:
            continue  # named all the same, so that a check of names sees it
        waiting += [each for each in map(Requirement, lines) if applies(each, requirement.extras)]
    return {name for name, _ in found}


def link_packages(names: Iterable[str], site_packages: Path) -> None:
    """Put links to the installed copies of these packages into another environment."""
    for name in names:
        package = distribution(name)
        assert package.files, f"{name} has no list of its files"
        for top in {file.parts[0] for file in package.files}:
            link = site_packages / top
            if top not in ("..", "__pycache__") and not link.exists():
                link.symlink_to(Path(str(package.locate_file(top))).resolve())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from this source tree."""
    folder = tmp_path_factory.mktemp("dist")
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT),
        cwd=folder,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Metadata:
    """Read what the wheel says about itself."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Metadata.from_email(archive.read(name))


@pytest.fixture(scope="module")
def base_packages(metadata: Metadata) -> set[str]:
    """Name everything a plain ``pip install napari-s2dc`` brings."""
    return closure(metadata.requires_dist or [])


@pytest.fixture(scope="module")
def fresh(wheel: Path, base_packages: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel in a new environment beside its dependencies; return the scripts folder."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    scripts = Path(sysconfig.get_path("scripts", "venv", {"base": str(folder)}))
    site_packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    python = scripts / "python"
    install = ("install", "--quiet", "--no-index", "--no-deps", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *install, cwd=folder)
    link_packages(base_packages, site_packages)
    return scripts


def test_the_wheel_holds_everything(wheel: Path) -> None:
    """Both packages with type marks, presets, the licence, and the manifest as a file, no link."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        manifest = archive.getinfo("napari_s2dc/napari.yaml")
        assert stat.S_ISREG(manifest.external_attr >> 16)
        assert archive.read(manifest) == (ROOT / "napari_s2dc" / "napari.yaml").read_bytes()
    sources = {
        path.relative_to(folder.parent).as_posix()
        for folder in (ROOT / "napari_s2dc", ROOT / "training" / "s2dc_train")
        for path in folder.rglob("*")
        if path.suffix in (".py", ".yaml")
    }
    typed = {"napari_s2dc/py.typed", "s2dc_train/py.typed"}
    presets = {Path(name).stem for name in names if re.match(r"s2dc_train/configs/.*\.yaml", name)}
    assert sources | typed <= names
    assert {"tiny_cpu", "small_gpu", "base_paper", "reference"} <= presets
    assert any(name.endswith("licenses/LICENSE") for name in names)
    encoders = [name for name in names if re.match(r"napari_s2dc/weights/.*\.safetensors", name)]
    assert encoders
    assert "napari_s2dc/weights/README.md" in names  # their model card
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"napari_s2dc", "s2dc_train"}


def test_the_metadata_is_right(metadata: Metadata) -> None:
    """The version is the package's, and no dependency of the plugin has an upper limit."""
    assert str(metadata.version) == napari_s2dc.__version__
    assert metadata.license_expression == "BSD-3-Clause"
    assert "Framework :: napari" in (metadata.classifiers or [])
    limits = [
        str(requirement)
        for requirement in metadata.requires_dist or []
        if requirement.marker is None
        and any(part.operator not in (">=", "!=") for part in requirement.specifier)
    ]
    assert limits == []


def test_no_qt_and_no_napari_is_pulled_in(base_packages: set[str], metadata: Metadata) -> None:
    """A headless install never needs Qt; the extra for the screen does ask for it."""
    assert "torch" in base_packages  # the closure is not simply empty
    assert base_packages & QT_AND_NAPARI == set()
    app = {each.name for each in metadata.requires_dist or [] if applies(each, ["app"])}
    assert {"napari", "pyside6"} <= app


def test_every_dependency_has_a_tested_version(metadata: Metadata) -> None:
    """constraints.txt pins whatever pyproject.toml names, within what it allows."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {
        canonicalize_name(name): version
        for name, version in (line.split("==") for line in lines if "==" in line)
    }
    extras = metadata.provides_extra or []
    for requirement in metadata.requires_dist or []:
        name = canonicalize_name(requirement.name)
        if applies(requirement, extras) and name != "napari-s2dc":
            assert name in pins, f"{name} is missing from constraints.txt"
            assert requirement.specifier.contains(pins[name]), f"{requirement}: {pins[name]}"


def test_every_import_is_declared(wheel: Path, metadata: Metadata) -> None:
    """Whatever the code imports, at any depth, pyproject.toml asks for by name."""
    extras = ("app", "demo", "umap")  # and not dev, which nobody installs for use
    declared = {
        canonicalize_name(requirement.name)
        for requirement in metadata.requires_dist or []
        if applies(requirement, extras)
    }
    ours = {"napari_s2dc", "s2dc_train"}
    providers = packages_distributions()
    imported: dict[str, str] = {}
    with zipfile.ZipFile(wheel) as archive:
        for file in (name for name in archive.namelist() if name.endswith(".py")):
            for node in ast.walk(ast.parse(archive.read(file))):
                if file.endswith(KERNELS) and "triton" in ast.unparse(node):
                    continue  # comes with the builds of torch that can use it
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0]: file for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    imported[node.module.split(".")[0]] = file
    assert "torch" in imported
    undeclared = {
        module: file
        for module, file in imported.items()
        if module not in ours | sys.stdlib_module_names
        and not declared & {canonicalize_name(each) for each in providers.get(module, [module])}
    }
    assert undeclared == {}


def test_the_dependencies_agree(fresh: Path, tmp_path: Path) -> None:
    """Pip finds every requirement of the installed wheel met."""
    python = fresh / "python"
    run(sys.executable, "-m", "pip", "--python", python, "check", cwd=tmp_path)


@pytest.mark.parametrize("command", ["s2dc", "s2dc-train"])
def test_the_commands_run(command: str, fresh: Path, tmp_path: Path) -> None:
    """Both commands explain themselves in an environment without Qt."""
    assert command in run(fresh / command, "--help", cwd=tmp_path)


def test_napari_accepts_the_manifest(fresh: Path, tmp_path: Path) -> None:
    """npe2 finds the installed manifest and it is valid; tests/test_manifest.py imports it all."""
    link_packages(
        closure([Requirement("npe2")]),
        Path(sysconfig.get_path("purelib", "venv", {"base": str(fresh.parent)})),
    )
    printed = run(fresh / "python", "-m", "npe2", "validate", "napari-s2dc", cwd=tmp_path)
    assert "valid" in printed


def test_opening_the_plugin_is_light(fresh: Path, tmp_path: Path) -> None:
    """What napari imports to list the plugin and its commands brings in none of the heavy ones."""
    manifest = yaml.safe_load((ROOT / "napari_s2dc" / "napari.yaml").read_text(encoding="utf-8"))
    commands = manifest["contributions"]["commands"]
    modules = {command["python_name"].split(":")[0] for command in commands}
    modules.remove("napari_s2dc.widgets.workbench")  # needs Qt, which is not here; see tests/gui
    modules = sorted(modules)
    assert modules
    code = (
        "import sys, importlib, napari_s2dc\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(napari_s2dc.__version__, *{name.split('.')[0] for name in sys.modules})"
    )
    version, *imported = run(fresh / "python", "-c", code, cwd=tmp_path).split()
    assert version == napari_s2dc.__version__
    assert set(imported) & HEAVY == set()
