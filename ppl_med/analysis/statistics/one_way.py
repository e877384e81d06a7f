"""Variance components of a nested table: groups such as draws of the weights, members inside them.

With y_gs the value of member s of group g, G groups of S members each, groups and members random,

    y_gs = mean + group_g + member_gs

    within     mean over groups of their variance, divisor S - 1
    between    variance of the G means, divisor G - 1, less within / S: the noise of S members
    total      their sum: half the mean squared difference of two members of different groups

are unbiased, whatever the distributions: the estimates of the analysis of variance. Where groups
hardly differ, ``between`` may be negative; it is left so, lest means over cases be too large.

Every group gets an influence on each component, whose mean over groups is the estimate and whose
spread gives its error: of ``within`` the variance inside the group, of ``between`` the pseudo-value
of the jackknife that leaves the group out. It asks for no distribution, and errs on the large side
(Efron and Stein, Annals of Statistics 9, 1981).

Source: Searle, Casella and McCulloch, Variance Components, Wiley 1992, chapter 3.
"""

import numpy as np

NAMES = ("within", "between", "total")


def influences(values: np.ndarray) -> np.ndarray:
    """Return what every group adds to the components; their means over groups are the estimates.

    Args:
        values: Float64 (group, member, ...), two or more of each.

    Returns:
        (component, group, ...) in the order of ``NAMES``, in the squared unit of the values. Of two
        groups, those of ``between`` are equal by construction and their spread is no error.
    """
    groups, members = values.shape[:2]
    shifted = values - values[:1, :1]  # equal values must give exactly zero
    mean = shifted.mean(1)
    within = ((shifted - mean[:, None]) ** 2).sum(1) / (members - 1)
    square = (mean - mean.mean(0)) ** 2
    if groups > 2:
        rest = square.sum(0) / ((groups - 1) * (groups - 2))
        between = square * (groups / (groups - 2)) - rest - within / members
    else:
        between = square * (groups / (groups - 1)) - within / members
    return np.stack([within, between, within + between])
