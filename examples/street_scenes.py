"""Street scenes: four variants of one net, what each uncertainty says, in sun and in fog.

Trains a net on CamVid without and with noise on its logits that it learns, without and with dropout
over its weights (Kendall and Gal, NeurIPS 2017), with less and less data, and compares them on the
validation images and on corrupted ones. Writes to the output folder, for every run (variant,
fraction, seed), checkpoint.pt, history.nc, maps-<images>.nc (uncertainty of every pixel),
confusion.nc, figures.nc and posterior-shown.nc, and for all of them

    table.md, table.nc   IoU, accuracy, NLL, ECE, mean entropy and logit variance
    report.html          maps, precision and recall by uncertainty, training

The published nets got 67.1 (baseline), 67.4 (aleatoric), 67.2 (epistemic) and 67.5 (both) IoU on
the test split, and 57.2, 62.9 and 67.5 (both) with a quarter, half and all of the data. They are
DenseNets of 103 layers, 360 x 480 pixels, trained until they converged. What stands here by default
is a U-Net of 0.2 million weights at 72 x 96 pixels, a few minutes of training, and the validation
split, some of whose frames are of a drive that is also in training: figures are lower, and only
their order compares. ``--net tiramisu103 --size 180 240 --steps 30000 --batch-size 4``, on a GPU,
comes nearest.

Finished runs are kept with --resume, so the study can be stopped and spread over machines.
"""

import numpy as np
import tyro
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
from street_scenes.pages import COLUMNS, show
from street_scenes.study import Options, Study, read

from ppl_med import storage
from ppl_med.analysis import scoring
from ppl_med.storage import check_same, open_run


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


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
