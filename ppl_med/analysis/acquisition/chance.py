"""Random batches: the baseline of every study, and two that know what is common.

    random               every case alike
    class_balanced       predicted classes in turn, at random within each
    foreground_random    a share of the cases from those with predicted foreground

In segmentation the last is the opponent to beat: background is cheap and teaches little.

Source: Luth et al., nnActive, TMLR 2025 (random 66 / foreground 33 per cent), where foreground is
known; here it is what the model predicts, or what is given.
"""

import numpy as np

SHARE = 1 / 3  # of the purchases, from cases with foreground


def balanced_order(classes: np.ndarray, counts: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """All cases, such that each comes from the class that was bought least so far.

    Args:
        classes: Predicted class of every case (case,).
        counts: Cases bought of each class before (class,).
        noise: Orders cases within a class, and classes of equal count (case,).

    Returns:
        Positions in order of purchase.
    """
    bought = counts.astype(np.int64).copy()
    waiting = {
        int(name): list(np.flatnonzero(classes == name)[np.argsort(noise[classes == name])])
        for name in np.unique(classes)
    }
    order = []
    while waiting:
        fewest = min(bought[name] for name in waiting)
        names = [name for name in waiting if bought[name] == fewest]
        name = max(names, key=lambda one: noise[waiting[one][-1]])
        order.append(waiting[name].pop())
        bought[name] += 1
        if not waiting[name]:
            del waiting[name]
    return np.array(order)


def foreground_order(
    has_foreground: np.ndarray, noise: np.ndarray, kind: np.ndarray, share: float
) -> np.ndarray:
    """All cases, each purchase with probability ``share`` from those with foreground.

    Args:
        has_foreground: Flags (case,).
        noise: Orders cases (case,).
        kind: Uniform numbers that choose between all and foreground (case,).
        share: Probability of the latter, while there is any.

    Returns:
        Positions in order of purchase.
    """
    order = list(np.argsort(-noise))
    result = []
    for uniform in kind:
        places = [place for place in order if has_foreground[place]] if uniform < share else order
        place = (places or order)[0]
        result.append(place)
        order.remove(place)
    return np.array(result)
