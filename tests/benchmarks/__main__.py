"""All benchmarks, one after the other, and one page of their tables.

    python tests/benchmarks --out runs/benchmarks
    python tests/benchmarks --only step predict --out runs/benchmarks

Every script leaves its table in the folder; those whose table is there are not run again, so that a
run can be stopped and gone on with. Leave the machine alone meanwhile: the load average stands in
every table. What a script needs and is not installed, or a folder of data that is not there, is
said in the page, and the others are run all the same.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SCRIPTS = {
    "step": "Training step",
    "captured_step": "Compiled and captured training step",
    "time_to_nll": "Time to a held-out NLL and ELBO",
    "ranks": "Several processes",
    "predict": "Prediction",
    "sampling": "Masks of the Probabilistic U-Net",
    "mirroring": "Draws under mirroring",
    "attribution": "Attribution",
    "analyses": "Analyses",
    "ood": "Out-of-distribution scores",
    "scaling": "Growth with cases, draws and voxels",
}
FIGURED = ("scaling",)
PACKAGES = (
    "torch",
    "pyro-ppl",
    "numpy",
    "xarray",
    "zarr",
    "dask",
    "monai",
    "torchmetrics",
    "mapie",
)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables and the page")
    parser.add_argument("--smoke", action="store_true", help="the shortest run of each, to no end")
    return parser.parse_args()


def machine() -> str:
    """Processor, cores and versions, as a line."""
    named = []
    for name in PACKAGES:
        try:
            named.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            named.append(f"no {name}")
    return (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}; {', '.join(named)}."
    )


def run(name: str, settings: argparse.Namespace) -> str | None:
    """Run a script unless its table is there; what went wrong, or None."""
    table = settings.out / f"{name}.md"
    if table.exists():
        return None
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--out", str(table)]
    if settings.smoke:
        command.append("--smoke")
    if name in FIGURED:
        command += ["--figure", str(settings.out / f"{name}.png")]
    start = time.monotonic()
    print(f"{name} ...", end=" ", flush=True)
    with open(settings.out / f"{name}.log", "w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    print(f"{'failed' if code else 'done'} in {time.monotonic() - start:.0f} s", flush=True)
    if code == 0:
        return None
    last = (settings.out / f"{name}.log").read_text().strip().splitlines()
    return last[-1] if last else f"exit status {code}"


def page(settings: argparse.Namespace, failed: dict[str, str]) -> str:
    """The tables that are there, as one page."""
    parts = ["# Benchmarks", machine()]
    for name in settings.only:
        parts.append(f"## {SCRIPTS[name]}")
        if name in failed:
            parts.append(f"`{name}.py` failed: {failed[name]}")
        else:
            parts.append((settings.out / f"{name}.md").read_text().strip())
        if name in FIGURED and (settings.out / f"{name}.png").exists():
            parts.append(f"![{SCRIPTS[name]}]({name}.png)")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run and write the page; the exit status is 1 where a script failed."""
    settings = parse()
    settings.out.mkdir(parents=True, exist_ok=True)
    found = {name: run(name, settings) for name in settings.only}
    failed = {name: told for name, told in found.items() if told is not None}
    written = settings.out / "page.md"
    written.write_text(page(settings, failed))
    print(f"{written}: {len(settings.only) - len(failed)} of {len(settings.only)} tables")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
