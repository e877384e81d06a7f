"""Which digits are worth a label? Acquisitions against random, by a Bayesian and a plain net.

The experiment of Gal, Islam and Ghahramani on the part of MNIST at hand: from 20 labels on, 10 a
step, a net is trained from scratch on all labels so far, and asks for those it can learn most from.
The same seed means the same first labels, first weights and pool for every acquisition.

    labels        labels for 10 % and 5 % test error, and the area under the curve of the budget
    calibration   what asking does to ECE, NLL and the coverage of 90 % predictive sets
    repeated      a pool in which each digit comes three times: BALD against BatchBALD

Nothing is tuned on the test part, and no run stops by it. Every run (pool, net, acquisition, seed)
has a folder and goes on with --resume where it was. Writes table.md, figures.nc, pictures, and
posterior.nc, the test part as the last net of the first run saw it.
"""

import tyro
from active_digits.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from active_digits.run import main  # after the options, so that --help is quick

    main(options)
