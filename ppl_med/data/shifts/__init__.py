"""Shifts with a known kind and strength, to try what a model says of cases it was not made for.

corrupt            images made worse, severity 0 (the same image) to 5; names in CORRUPTIONS
resample_labels    label shift: the same classes in other shares
relabel            concept shift: the same images called by another name
hold_out_class     semantic shift: a class that training never sees

noise, blurring, intensities, acquisition     the corruptions by kind
"""

from ppl_med.data.shifts.corruptions import CORRUPTIONS, corrupt
from ppl_med.data.shifts.populations import hold_out_class, relabel, resample_labels

__all__ = ["CORRUPTIONS", "corrupt", "hold_out_class", "relabel", "resample_labels"]
