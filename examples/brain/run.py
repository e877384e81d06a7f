"""The study from end to end."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from brain.leakage import leak
from brain.options import Options
from brain.pictures import three_planes
from brain.scans import class_names, own, phantoms, planted_hippocampi
from brain.study import run
from ppl_med import storage
from ppl_med.storage import check_same, open_run

HEAD = ["scans", "AUC: net", "volume", "Bayes", "accuracy: net", "volume", "Bayes", "NLL"]
PLACE = ["scans", "evidence in the region %", "its share of the brain %", "ratio [90 % of draws]",
         "ratio of plain contributions",
         "top voxel inside"]  # fmt: skip


def scans(options: Options, source: str, seed: int) -> dict[str, Any]:
    """Training and test cases."""
    if source == "own":
        assert options.data is not None
        return own(options.data, options.size, options.classes, seed)
    if source == "hippocampus":
        return planted_hippocampi(options.hippocampus, seed)
    sizes = {"train": options.cases, "test": options.test_cases}
    return phantoms(sizes, options.size, seed)


def kept(path: Path, make: Any) -> Any:
    """What a file holds, or what is made and written to it."""
    if not path.exists():
        storage.write_text(path, json.dumps(make(), indent=1) + "\n")
    return json.loads(path.read_text())


def show(options: Options, folder: Path, source: str, figures: dict[str, Any]) -> None:
    """The picture of the first explained case."""
    seed = options.seed[0]
    test, place = scans(options, source, seed)["test"], folder / f"{source}-{seed}"
    if not figures["explained"]:
        return
    case, maps = figures["explained"][0], xr.load_dataset(place / "maps.nc").isel(case=0)
    spacing = np.linalg.norm(np.asarray(test["affine"])[case, :3, :3], axis=0)
    region = test["mask"][case] if "mask" in test else None
    title = f"{source} {test['id'][case]}: evidence for {class_names(options)[1]}"
    if region is not None:
        title += "; yellow: where the atrophy is"
    figure = three_planes(test["image"][case, 0], maps, region, spacing, title)
    figure.savefig(folder / f"{source}-planes.png", dpi=80)


def several(values: list[float], digits: int = 3) -> str:
    """Mean, and the range over seeds."""
    if not values:
        return ""
    mean = f"{np.mean(values):.{digits}f}"
    return mean + (f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if values[1:] else "")


def rows(source: str, found: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """The lines of a source in the two tables."""
    line = [source]
    for figure in ("auc", "accuracy"):
        for who in ("net", "roi", "bayes"):
            line.append(several([one[who][figure] for one in found if who in one]))
    line.append(several([one["nll"] for one in found]))
    ends = [[one["ratio"][k] for one in found if "ratio" in one] for k in range(3)]
    spread = f" [{np.mean(ends[1]):.1f}, {np.mean(ends[2]):.1f}]" if ends[0] else ""
    alone = [[one["ratio_alone"][k] for one in found if "ratio_alone" in one] for k in range(3)]
    apart = f" [{np.mean(alone[1]):.1f}, {np.mean(alone[2]):.1f}]" if alone[0] else ""
    place = [
        source,
        *(several([100 * one[k] for one in found if k in one], 1) for k in ("mass", "share")),
        several(ends[0], 1) + spread,
        several(alone[0], 1) + apart,
        several([one["top"] for one in found if "top" in one], 2),
    ]
    return line, place


def main(options: Options) -> None:
    """Train, explain, compare, print."""
    folder = open_run(options.out, resume=options.resume)
    if options.smoke:
        options.shrink()
    check_same(options, folder, free=("data", "hippocampus", "source", "seed"))
    sources = ("own",) if options.data else options.source
    accuracies, places, text = [], [], []
    for source in sources:
        found = []
        for seed in options.seed:
            begun, place = time.monotonic(), folder / f"{source}-{seed}"
            found.append(
                kept(
                    folder / f"{source}-{seed}.json",
                    lambda s=source, k=seed, p=place: run(scans(options, s, k), options, k, p),
                )
            )
            print(f"{source}, seed {seed}: {time.monotonic() - begun:.0f} s")
        for case in found[0]["cases"]:
            text.append(
                f"{source} {case['id']} ({case['label']}): "
                f"p({class_names(options)[1]}) = {case['p']:.4f}, "
                f"aleatoric = {case['aleatoric']:.5f}, epistemic = {case['epistemic']:.5f}"
            )
        show(options, folder, source, found[0])
        accuracy, where = rows(source, found)
        accuracies.append(accuracy)
        places.append(where)
    leaks = [
        kept(
            folder / f"leakage-{seed}.json",
            lambda k=seed: leak(options.people, options.leak_epochs, k, options.device),
        )
        for seed in options.seed
    ]
    leaky = [[name, several([one[name] for one in leaks])] for name in leaks[0]]
    parts = [
        "\n".join(text),
        storage.markdown_table(HEAD, accuracies),
        storage.markdown_table(PLACE, places),
        storage.markdown_table(["random labels, slices split", "accuracy"], leaky),
    ]
    storage.write_text(folder / "table.md", "\n\n".join(parts) + "\n")
    print("\n" + "\n\n".join(parts))
