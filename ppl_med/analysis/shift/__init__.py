"""Have the cases shifted, and how: covariate, label, or something never seen?

    reference = shift.fit_reference(tree_train, held_out=tree_val)   # keep=("feature:...", ...)
    found = shift.diagnose(tree, reference)
    found["verdict"].item()                     # "none", "covariate", "label" or "semantic"

Labels of the shifted cases are never read. What cannot be seen without them: a concept shift, where
the same images are called by another name; a shift in what the network forgets; a shift too small
for the number of cases.

`shares_by_confusion` and `shares_by_em` estimate the shares of the classes after a label shift.
"""

from ppl_med.analysis.shift.diagnosis import VERDICTS, diagnose
from ppl_med.analysis.shift.label_shares import shares_by_confusion, shares_by_em
from ppl_med.analysis.shift.shift_reference import fit_reference

__all__ = ["VERDICTS", "diagnose", "fit_reference", "shares_by_confusion", "shares_by_em"]
