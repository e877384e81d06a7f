"""Does it know what it has never seen: scores per case, each with a p-value that holds.

    reference = ood.fit_novelty(tree_train, tree_val)       # predicted with keep=("feature:head",)
    found = ood.novelty(tree, reference)                    # pvalue of every case

`fit_reference` and `score` do the same for one score of ``ood.SCORES`` by name: of the
probabilities and logits (`confidence`), of features (`features`), or of a model that generates the
image (`generative`); `background_ratio` compares two of these. `combine` joins p-values of
several; `evaluate` and `evaluate_failures` say how well a score finds cases from elsewhere, and
wrong predictions; `with_pvalues` takes scores made elsewhere. Larger scores are more unlike the
reference, always.
"""

from ppl_med.analysis.ood.evaluation import evaluate, evaluate_failures
from ppl_med.analysis.ood.evidence import combine, fit_novelty, novelty
from ppl_med.analysis.ood.found import with_pvalues
from ppl_med.analysis.ood.generative import background_ratio
from ppl_med.analysis.ood.references import SCORES, fit_reference, score

__all__ = [
    "SCORES",
    "background_ratio",
    "combine",
    "evaluate",
    "evaluate_failures",
    "fit_novelty",
    "fit_reference",
    "novelty",
    "score",
    "with_pvalues",
]
