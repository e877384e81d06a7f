"""Rare positives: which cells to label where one in thirteen is parasitized.

The experiment of Gal, Islam and Ghahramani on melanoma, on data at hand: a pool that is mostly
negative, a few labels to start, and a rule that says which cells a reader labels next. Counts the
positives that were bought, the AUROC at every step, and what buying does to calibration: a
purchased set is no sample of the clinic, so probabilities rise above the true share.

Every run (rule, seed) has a folder in --out and goes on where it was stopped with --resume. One
seed gives all rules the same pool, start and first weights. Pool and test share no patient.
--source isic reads a folder of ISIC pictures with its table of diagnoses instead.
"""

import tyro
from active_cells.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from active_cells.run import main  # after the options, so that --help is quick

    main(options)
