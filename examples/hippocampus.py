"""Hippocampus volumes in mm³, each with an interval that says how sure the network is.

Trains a 3D U-Net with random weights on MR volumes of the Medical Segmentation Decathlon and
measures anterior and posterior part in every posterior draw. A draw is one function of the volume,
so that neighbouring voxels err together; the interval over draws is as wide as that makes it.

Taken voxel by voxel, as if every voxel drew weights of its own, the same draws give intervals that
are far too narrow, since the errors of thousands of voxels seem to cancel. That is what sampling
voxels from mean probabilities gives, and the local reparameterization trick left on at prediction;
so prediction here always draws weights, whatever estimator trained them.

No posterior is promised to cover: where it does not, the intervals are widened by cases that were
not trained on (conformal prediction): half of val, or all of it for --split test.

Needs --data with hippocampus/ in it. Writes to the output folder

    checkpoint.pt, history.nc, posterior-<split>.zarr
    table.md, table.nc   coverage and width of the intervals, Dice
    report.html          slices, draws, uncertainty maps, volumes against the truth
"""

import tyro
from hippocampus.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from hippocampus.run import main  # after the options, so that --help is quick

    main(options)
