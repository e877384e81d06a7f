"""Planted shifts on real images: does the diagnosis name the right one?

A small net learns nine digits of MNIST, or the two classes of pneumoniamnist or malaria cells. From
cases that it has not seen, reference cases and new ones are drawn anew for every repeat, and the
new ones are left as they are or shifted:

    none         the same classes in the same shares
    covariate    images made worse by contrast, blur or noise, in turn (`data.shifts.corrupt`)
    label        other shares of the classes (`data.shifts.resample_labels`)
    semantic     a part of them the tenth digit, which the net does not know (MNIST)

Writes to the output folder:

    diagnosis-<set>.nc   the verdict and p-values of every repeat
    diagnosis.md         what was planted against what was named, with exact binomial intervals
    diagnosis.png        the same as a picture
"""

import tyro
from diagnosis.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options)
    from diagnosis.run import main  # after the options, so that --help is quick

    main(options)
