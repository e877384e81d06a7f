"""Depth from one image: noise that the net learns, uncertainty of its weights, and their use.

Trains four variants of one small U-Net (Kendall and Gal, NeurIPS 2017) on synthetic scenes whose
noise is known at every pixel, with less and less data, and tests them on new scenes, and on shifted
ones with the same distribution of depth and a look that no training scene has. The truth is known:

    aleatoric variance   should be that of the noise, whatever the number of training scenes
    epistemic variance   should fall with the number of scenes, and rise on shifted ones

Weights are drawn by an ensemble; --guide dropout takes dropout, which at a rate of 0.05 before the
last layer alone overrated the noise by 0.06 m, at a correlation of 0.85 with the truth.

Writes to the output folder, for every run (variant, fraction, seed), checkpoint.pt, history.nc and
figures.nc, for the runs in the report posterior-<images>.nc, and for all of them

    table.md, table.nc   RMSE, NLL, CRPS, variances, learnt against true noise, calibration, AUSE
    report.html          maps, learnt noise, coverage, sparsification, variances by training size

Test scenes have no outliers; --outliers puts them into training scenes. Finished runs are kept with
--resume.
"""

import tyro
from dense_uncertainty.variants import rows_of
from depth.pages import show
from depth.scores import COLUMNS
from depth.study import Options, Study, collect

from ppl_med import storage
from ppl_med.storage import check_same, open_run


def main(options: Options) -> None:
    """Run the study, print and save its table, write the report."""
    folder = open_run(options.out, resume=options.resume)
    if options.smoke:
        options.shrink()
    check_same(options, folder, free=("variant", "fraction", "seed"))
    study = Study(options, folder)
    result = collect(study)
    print(storage.markdown_table(*rows_of(result, COLUMNS, "images")))
    show(study, result)
    print(f"Wrote {folder / 'table.md'} and {folder / 'report.html'}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
