"""Does a prediction set that promises 90 % say so when it does not keep it?

Sets are calibrated on the validation part and read on the test part as it is, on the same cases
made worse (noise, contrast, blur; severity 1, 3, 5) and on films of another hospital. Whether they
warn is decided without a label of a test case, as in use: by predicted probabilities and by
features. Labels only tell afterwards what the coverage was.

Where the promise should hold, on random halves of the validation part, warnings are false alarms.

Every pair (data set, test cases), guide and seed has a line: coverage, its 99 % band, the p-values,
whether it warned, and the coverage and effective number of cases after weights for the shift.
Cases of one patient are counted together (malaria, NIH films).

Trained nets are kept in the output folder and not trained again with --resume.
"""

import tyro
from set_coverage.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from set_coverage.run import main  # after the options, so that --help is quick

    main(options)
