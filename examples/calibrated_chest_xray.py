"""Chest X-rays: can the probability be trusted, and which diagnoses cannot be excluded?

Pneumonia on 28 x 28 X-rays of children (PneumoniaMNIST), or with --pictures malaria parasites in
blood cells, by five ways to train one LeNet, each recalibrated in five ways, each with three kinds
of prediction sets. Every row is scored on the test part: accuracy, NLL, Brier score and calibration
error with bootstrap intervals, coverage of the sets against its exact band, and their size.

No case is used twice. The network learns on the training part. One half of the validation part
trains the recalibration maps and compares recipes and maps; the other half does nothing but
calibrate the prediction sets. The test part is read after all choices are made.

Every run (guide, seed) gets a folder with its checkpoint and posteriors. Finished runs are not
repeated with --resume. The ensemble's first member is the frequentist net.
"""

import tyro
from recalibration.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from recalibration.run import main  # after the options, so that --help is quick

    main(options)
