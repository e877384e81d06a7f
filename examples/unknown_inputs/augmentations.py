"""What flips and turns change in predictions of malaria cells, and what other draws change.

No direction is special in a blood smear, so a cell turned by 90 degrees is the same cell. A net
that has seen each cell in one position may say otherwise, in all of its posterior draws alike: no
entropy, mutual information or epistemic variance over draws shows it. Two small Bayesian nets are
trained, with and without random flips and turns, and predict the same held-out cells with the same
draws under the eight symmetries of the square.

    python examples/unknown_inputs/augmentations.py --out runs/augmentations
"""

import tyro
from augmentations.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options)
    from augmentations.run import main  # after the options, so that --help is quick

    main(options)
