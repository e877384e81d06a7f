"""Fit BatchNorm to the images at hand, without labels, and without touching what was trained.

    model, guide = adapt(model, guide, ward, draws=32)      # statistics of these images, per draw
    tree = predict(model, guide, ward, draws=32)            # the tree as ever

BatchNorm normalises by statistics of the training images; images of another scanner or stain have
others, and every layer after it sees what it was not trained on. Statistics are sites of the
adapted program here (`statistic_sites`), so they have draws of their own like all that is not
known: a source share with a Beta prior gives a posterior over how far to adapt.

adapting       adapt                     statistics of a batch, a domain, or shared with the source
source_share   Beta                      prior and posterior of that share
entropy        minimise_entropy          scales and shifts by the entropy of predictions (TENT)
consistency    minimise_disagreement     by the agreement of views of an image
"""

from ppl_med.inference.adaptation.adapting import adapt
from ppl_med.inference.adaptation.consistency import minimise_disagreement
from ppl_med.inference.adaptation.entropy import minimise_entropy
from ppl_med.inference.adaptation.source_share import Beta
from ppl_med.inference.adaptation.statistic_sites import BatchStatistics, StatisticSites

__all__ = [
    "BatchStatistics",
    "Beta",
    "StatisticSites",
    "adapt",
    "minimise_disagreement",
    "minimise_entropy",
]
