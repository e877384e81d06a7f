"""Which case to label next: scores of unlabelled cases, and batches of them, off a tree.

    tree = predict(model, guide, pool, draws=32, seed=0)
    bought = acquisition.acquire(tree, by="bald", size=10, seed=0)   # bought.case: ids, in order

`acquire` takes its rule by a name in `METHODS`, or as a function of the tree. `needs` says what a
rule reads beside probabilities. One function a score gives the score of every case, with its
standard error over draws:

case_scores     max_entropy, bald, variation_ratio, mean_sd, margin, least_confidence
targets         epig: what a label tells of cases one will be asked about
batches         BatchBALD: what the labels of a batch tell together
noisy_order     PowerBALD and its kin: a batch by a score and noise
spread          core-set, typical clusters: by features, no score of uncertainty
strata          maps: every class has its turn
chance          random, balanced by predicted class, with foreground

Draws are the same functions for all cases of a tree of `predict`; joint scores rest on that.
Observations are never read: what has a label already is left out by ``labelled``, or was not
predicted.
"""

from ppl_med.analysis.acquisition.case_scores import (
    bald,
    least_confidence,
    margin,
    max_entropy,
    mean_sd,
    variation_ratio,
)
from ppl_med.analysis.acquisition.purchase import METHODS, acquire, needs
from ppl_med.analysis.acquisition.targets import epig

__all__ = [
    "METHODS",
    "acquire",
    "bald",
    "epig",
    "least_confidence",
    "margin",
    "max_entropy",
    "mean_sd",
    "needs",
    "variation_ratio",
]
