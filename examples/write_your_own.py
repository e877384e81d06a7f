"""Write your own: a plain Pyro function, trained and read like any model of the zoo.

The function stands in write_your_own/run.py, its options beside it. The data are simulated.
"""

import tyro
from write_your_own.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from write_your_own.run import main  # after the options, so that --help is quick

    main(options)
