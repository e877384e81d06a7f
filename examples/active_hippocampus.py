"""Which MR slices to outline, against random slices that know where the organ is.

Half of the slices are empty and cheap; borders are dear. So the opponent to beat is not plain
random but foreground-aware random, after the baseline of nnActive: two slices in three anywhere,
one in six where a voxel of the organ is, one in six where a voxel of its border is (drawn by the
outlines, which a reader finds by leafing through the volume). Uncertainty per pixel becomes a score
per slice by an aggregation that is named with the rule.

Bought is every fourth slice of the training volumes, 52 x 32 pixels; Dice is that of whole volumes
(every fourth slice) of other patients. Runs go on where they were stopped with --resume. One seed
gives all rules the same pool, start and first weights.
"""

import tyro
from active_hippocampus.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from active_hippocampus.run import main  # after the options, so that --help is quick

    main(options)
