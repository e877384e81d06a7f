"""The study from end to end."""

import numpy as np
import xarray as xr
from dense_uncertainty.pixels import (
    resampled,
)
from dense_uncertainty.variants import (
    Cell,
    assemble,
    cells,
    rows_of,
)

from ppl_med import storage
from ppl_med.analysis import scoring
from ppl_med.storage import check_same, open_run
from street_scenes.options import Options
from street_scenes.pages import COLUMNS, show
from street_scenes.study import Study, read


def collect(study: Study) -> xr.Dataset:
    """Run everything that was asked for; the figures over variant, fraction, seed and images."""
    found = {}
    for cell in cells(study.options):
        found[cell] = study.run(cell)
        result = with_gains(study, found)
        storage.save(result, study.folder / "table.nc")
        text = storage.markdown_table(*rows_of(result, COLUMNS, "images"))
        storage.write_text(study.folder / "table.md", text + "\n")
    return result


def with_gains(study: Study, found: dict[Cell, xr.Dataset]) -> xr.Dataset:
    """Add the IoU less the baseline's of the same fraction and seed, on the same images."""
    parts = {}
    for cell, part in found.items():
        base = Cell("baseline", cell.fraction, cell.seed)
        gain = xr.full_like(part["iou"], np.nan).rename("gain")
        error = gain.copy()
        if base in found and cell != base:
            own, other = (
                read(study.folder / one.name / "confusion.nc")["confusion"] for one in (cell, base)
            )
            for name in part["images"].values:
                pair = [one.sel(images=name).dropna("case").values for one in (own, other)]
                if pair[0].sum():
                    mine, baseline = (scoring.mean_iou(counts.sum(0)) for counts in pair)
                    gain.loc[name] = mine - baseline
                    error.loc[name] = (resampled(pair[0]) - resampled(pair[1])).std(ddof=1)
        parts[cell] = part.assign(gain=gain, gain_se=error)
    return assemble(parts)


def main(options: Options) -> None:
    """Run the study, print and save its table, write the report."""
    folder = open_run(options.out, resume=options.resume)
    if options.smoke:
        options.shrink()
    check_same(options, folder, free=("data", "variant", "fraction", "seed"))
    study = Study(options, folder)
    result = collect(study)
    print(storage.markdown_table(*rows_of(result, COLUMNS, "images")))
    show(study, result)
    print(f"Wrote {folder / 'table.md'} and {folder / 'report.html'}")
