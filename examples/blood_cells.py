"""Blood cells: a posterior over sets of boxes, against the same detector without one.

Trains a small RetinaNet-like detector on smears (BCCD: red cells, white cells, platelets), its
weights as points, as normals, with dropout, and the points of all seeds as an ensemble, all with
the same steps. Draws are joined into objects, each with p(exists), class probabilities, an interval
on every edge, and both variances of score and edges. What is scored on the validation images:

    AP50, mAP       average precision
    LaECE           calibration of confidence and place, at thresholds learnt on the other half
    PDQ             quality of boxes as distributions, at those thresholds
    coverage        of the edges' 90 % intervals
    conformal       share of missed cells, and coverage of edges, each promised; learnt on one half

A baseline that never sees the image is scored beside: every training set of boxes is a draw.

Writes to the output folder, for every run, checkpoint-<guide>-<seed>.pt and
posterior-<guide>-<seed>.nc, and for all of them table.md, scores.json and objects.png. Finished
runs are kept with --resume.
"""

import tyro
from blood_cells.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from blood_cells.run import main  # after the options, so that --help is quick

    main(options)
