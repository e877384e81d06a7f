"""Lung nodules that four radiologists outlined, or did not: which model disagrees as they do?

Trains the Probabilistic U-Net or its rivals on the LIDC crops, one grader's mask drawn anew for
every image of every batch, and compares sampled masks with all four graders of patients that were
not trained on. Writes to the output folder, for every model, checkpoint.pt, history.nc and
posterior-<split>.zarr, and for all of them

    table.md, table.nc   GED² by number of samples, its unbiased form and its floor, and overlaps
    missed.md            masks that may miss a stated share of the nodule: what they missed
    report.html          pictures: graders beside samples, areas, uncertainty, the latent plane

Finished models are kept with --resume, so a study can be stopped and models added.
"""

import tyro
from lung_nodules.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from lung_nodules.run import main  # after the options, so that --help is quick

    main(options)
