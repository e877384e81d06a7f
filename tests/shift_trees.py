"""Trees of a known generator of shifts: normal classes of features, and their probabilities.

none         new cases of the same classes
label        other shares of the classes
covariate    all cases moved and stretched
semantic     a part of the cases from a class that the classifier does not know
"""

import numpy as np
import xarray as xr
from scipy.special import softmax

UNITS, CLASSES = 8, 3
SHARES = {"label": np.array([0.1, 0.2, 0.7])}
NEW = 0.25


def shifted_tree(
    kind: str,
    number: int,
    prefix: str,
    seed: int,
    *,
    patients: int | None = None,
    chains: int = 1,
    draws: int = 2,
) -> xr.DataTree:
    """Cases of three classes 4 standard deviations apart, with probabilities of Bayes' rule.

    ``patients`` have all their cases alike: they share half of the variance within a class. The
    features of every draw are the same up to noise, those of every chain turned by its own matrix.
    """
    random = np.random.default_rng([seed, sum(map(ord, prefix + kind))])
    share = SHARES.get(kind, np.full(CLASSES, 1 / CLASSES))
    of_patient = np.arange(number) if patients is None else np.arange(number) % patients
    count = number if patients is None else patients
    own_class = random.choice(CLASSES, count, p=share)
    centre = np.eye(CLASSES, UNITS) * 4 / 2**0.5
    deviation = random.normal(size=(count, UNITS))[of_patient]
    if patients is not None:
        deviation = 0.5**0.5 * (deviation + random.normal(size=(number, UNITS)))
    label = own_class[of_patient]
    base = centre[label] + deviation
    if kind == "semantic":
        new = (random.random(count) < NEW)[of_patient]
        base[new] = deviation[new] + 3.0 * np.eye(UNITS)[CLASSES]
        label = np.where(new, -1, label)
    if kind == "covariate":
        base = 1.15 * base + 0.4
    probs = softmax(base @ centre.T - (centre**2).sum(1) / 2, -1)
    feature = np.empty((chains, draws, number, UNITS))
    for place in np.ndindex(chains, draws):
        turn = np.random.default_rng(place[0]).normal(size=(UNITS, UNITS)) + 2 * np.eye(UNITS)
        feature[place] = base @ turn + 0.01 * place[1]
    dims = ("chain", "draw", "case")
    coords = {"case": [f"{prefix}{i}" for i in range(number)], "class": list("abc")}
    posterior = xr.Dataset(
        {
            "probs": ((*dims, "class"), np.broadcast_to(probs, (chains, draws, *probs.shape))),
            "feature:head": ((*dims, "unit"), feature),
        },
        coords,
    )
    ids = {"case": posterior["case"]}
    groups = {
        "/posterior": posterior,
        "/observed_data": xr.Dataset({"label": ("case", label)}, ids),
    }
    if patients is not None:
        names = [f"{prefix}-{i}" for i in of_patient]
        groups["/constant_data"] = xr.Dataset({"patient": ("case", names)}, ids)
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = {"parameters_sha256": "one", "seed": 0, "log_likelihood_of": "held-out"}
    return tree
