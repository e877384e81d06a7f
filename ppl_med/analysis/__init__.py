"""Analyses of a posterior tree: xarray in, Dataset out; no torch, no Pyro.

uncertainty   entropy and variance, split into data and model parts
scoring       accuracy, NLL, Brier score, calibration error, held-out log density
conformal     prediction sets with a coverage guarantee
segmentation  sampled masks against several graders, uncertainty maps, sizes with intervals
"""
