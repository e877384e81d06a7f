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
from depth.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from depth.run import main  # after the options, so that --help is quick

    main(options)
