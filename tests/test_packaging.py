"""What the package promises as a package: its contents, its layout, what importing it costs.

Who may import whom is held by the contracts in pyproject.toml: run ``lint-imports``.
"""

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (ROOT / "ppl_med", ROOT / "models", ROOT / "inference")
LINKS = ("models", "inference")
TOP_LEVEL = {
    "pyproject.toml", "README.md", "LICENSE", "ppl_med", "models", "inference", "tests", "examples",
}  # fmt: skip
CATCH_ALL = {"utils", "util", "helpers", "helper", "base", "common", "misc"}
# `import ppl_med` must not pay for these.
HEAVY = {
    "arviz", "arviz_base", "arviz_plots", "arviz_stats", "captum", "dask", "h5py", "matplotlib",
    "monai", "scoringrules", "sklearn", "torchvision", "tyro", "zarr",
}  # fmt: skip


def settings() -> dict:
    """The [tool.setuptools] table and its neighbours."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def python_files(*folders: Path) -> list[Path]:
    """Every Python file below the folders; links are not followed, so each comes once."""
    return sorted(file for folder in folders for file in folder.rglob("*.py"))


def module_name(file: Path) -> str:
    """The import name of a file: models/lenet.py is ppl_med.models.lenet."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "ppl_med" else ("ppl_med", *parts)
    return ".".join(parts).removesuffix(".__init__")


def test_the_package_list_is_the_tree():
    folders = {module_name(f) for f in python_files(*SOURCES) if f.name == "__init__.py"}
    assert set(settings()["tool"]["setuptools"]["packages"]) == folders


def test_every_module_stands_in_a_package():
    lost = [f for f in python_files(*SOURCES) if not (f.parent / "__init__.py").exists()]
    assert not lost, f"no __init__.py beside {lost}"


@pytest.mark.parametrize("name", LINKS)
def test_the_links_are_relative_and_point_to_the_top_level(name):
    link = ROOT / "ppl_med" / name
    assert link.is_symlink()
    assert link.readlink().as_posix() == f"../{name}"
    assert link.resolve() == ROOT / name
    mapping = settings()["tool"]["setuptools"]["package-dir"]
    assert mapping[f"ppl_med.{name}"] == name


def test_the_wheel_holds_every_module_once(tmp_path):
    build = [
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--wheel-dir", str(tmp_path), str(copy_of_the_sources(tmp_path / "source")),
    ]  # fmt: skip
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("ppl_med-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        licenses = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    modules = {module_name(f).replace(".", "/") for f in python_files(*SOURCES)}
    shipped = {n.removesuffix(".py").removesuffix("/__init__") for n in names if n.endswith(".py")}
    assert shipped == modules
    assert len(names) == len(set(names))
    assert "ppl_med/py.typed" in names
    templates = (ROOT / "ppl_med/plots/report/templates").iterdir()
    assert {f.relative_to(ROOT).as_posix() for f in templates} <= set(names)
    assert {name.split("/")[0] for name in names} == {"ppl_med"}
    assert len(licenses) == 1


def copy_of_the_sources(folder: Path) -> Path:
    """Copy what a build reads, so that building leaves nothing behind in the checkout."""
    import shutil

    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    folder.mkdir()
    for source in SOURCES:
        shutil.copytree(source, folder / source.name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_analysis_runs_without_torch():
    names = [module_name(f) for f in python_files(ROOT / "ppl_med" / "analysis")]
    code = f"import importlib; [importlib.import_module(n) for n in {names!r}]"
    assert not {"torch", "pyro"} & modules_after(code)


def test_no_relative_imports():
    relative = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in python_files(*SOURCES)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative


def modules_after(code: str) -> set[str]:
    """Top-level names of the modules a fresh interpreter has loaded after running `code`."""
    report = f"{code}; import sys; print(*sorted({{n.split('.')[0] for n in sys.modules}}))"
    run = [sys.executable, "-c", report]
    return set(
        subprocess.run(run, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()
    )


def test_import_ppl_med_is_light():
    assert not HEAVY & (modules_after("import ppl_med") - modules_after("pass"))


def test_the_top_level_holds_only_what_it_should():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    tops = {name.split("/")[0] for name in listed.stdout.split("\0") if name}
    assert {top for top in tops if not top.startswith(".")} <= TOP_LEVEL


def test_no_catch_all_files():
    assert not [f for f in python_files(*SOURCES, ROOT / "tests") if f.stem in CATCH_ALL]
