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

import tyro
from street_scenes.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from street_scenes.run import main  # after the options, so that --help is quick

    main(options)
