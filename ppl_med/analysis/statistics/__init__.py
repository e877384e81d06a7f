"""Statistics that several analyses share: arrays in, arrays out; they know no tree.

monte_carlo      standard errors of figures from posterior draws
copies           how many functions the draws are
weight_draws     the same of draws that share their weights; errors over draws of the weights
tail_ties        what ties among the largest importance weights mean
case_means       means over cases and their standard errors
draw_ranks       intervals between draws, and levels of quantiles
binning          bins of equal width, exact binomial intervals
isotonic         isotonic regression
shares           shares of entries, with intervals over cases or patients
ranking          ROC and precision-recall, from counts at every threshold
group_resampling cases or whole groups of them, drawn again with replacement
resampling       labels drawn from given probabilities
two_sample       are two samples drawn alike, of cases or of patients
principal_shift  the same for features of layers, by their leading directions
unit_permutations  p-values by permuting whole patients
bivariate_normal  two correlated normal variables: P(X <= x, Y <= y)
location_scale   closed forms of the normal, Laplace and Student t
one_way          variance components of groups and their members
total_variance   split of a variance by the law of total variance
entropies        entropies and votes of draws of class probabilities
compiled         loops over draws that numba compiles, where it is installed
"""
