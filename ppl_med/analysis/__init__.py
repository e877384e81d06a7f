"""Analyses of a posterior tree: xarray in, Dataset out; no torch, no Pyro.

tree          the one door: what analyses read off a tree, with -1 and NaN left out and counted
statistics    standard errors, ranks, bins, isotonic regression
uncertainty   entropy and variance, split into data and model parts
moments       the same of trees that hold moments of all draws
augmentation  variance over draws and augmentations, split
convergence   R-hat of what was predicted, NaN where it is not defined
scoring       accuracy, IoU, NLL, Brier score and its parts, CRPS, energy, held-out log density
calibration   calibration errors and curves, recalibration on held-out cases
conformal     prediction sets with a coverage guarantee
selective     what is gained by leaving out the uncertain
acquisition   which case to label next: scores, batches, random baselines
ood           how unlike training a case is, with a p-value of every case
shift         whether cases have shifted, and how: covariate, label, semantic
aggregation   from a map of uncertainty to a score per case
spray         groups of cases by where the model looked, in search of a biased data set
case_groups   errors over patients: any analysis on resampled groups of cases
class_subsets some of the classes, renormalised
detection     boxes: average precision, LRP, FROC, PDQ, calibration and coverage of objects
exports       tables of results as CSV, maps as NIfTI in register with the input
findings      one of several findings per case at a time
segmentation  sampled masks against several graders, uncertainty maps, sizes with intervals
"""
