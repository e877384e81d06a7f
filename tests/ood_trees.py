"""Trees of a known generator for out-of-distribution scores: features, logits and probabilities."""

import numpy as np
import xarray as xr
from scipy.special import expit, softmax

UNITS, CLASSES = 6, 3


def by_class(logit: np.ndarray) -> dict[str, np.ndarray]:
    """What models give of every class, by logits of some."""
    kernel = expit(logit)
    return {"probs": softmax(logit, -1), "logit": logit, "kernel": kernel, "dividend": logit / 2}


def feature_tree(
    number: int,
    prefix: str,
    *,
    shift: float = 0.0,
    dead: int = 0,
    samples: tuple[int, int] = (1, 4),
    seed: int = 0,
    same_in_all_draws: bool = False,
) -> xr.DataTree:
    """Cases of three normal classes, whose features every draw turns by a matrix of its own.

    ``shift`` moves them by so many standard deviations along an axis that holds no class; the last
    ``dead`` units are 0. Logits are linear in the features, with weights of every draw.
    """
    random = np.random.default_rng([seed, sum(map(ord, prefix)), number])
    label = random.integers(CLASSES, size=number)
    base = random.normal(size=(number, UNITS))
    base[np.arange(number), label] += 2.5
    base[:, -1] += shift
    feature = np.zeros((*samples, number, UNITS + dead))
    logit = np.zeros((*samples, number, CLASSES))
    for place in np.ndindex(*samples):
        own = np.random.default_rng([9, 0 if same_in_all_draws else 1 + place[0] * 99 + place[1]])
        turn = np.eye(UNITS) + 0.3 * own.normal(size=(UNITS, UNITS))
        feature[place][:, :UNITS] = base @ turn
        weights = np.linalg.inv(turn)[:, :CLASSES] + 0.05 * own.normal(size=(UNITS, CLASSES))
        logit[place] = feature[place][:, :UNITS] @ weights - 2.0
    dims = ("chain", "draw", "case")
    posterior = xr.Dataset(
        {
            "feature:head": ((*dims, "unit"), feature),
            "divisor": (dims, expit(feature[..., 0])),
            **{name: ((*dims, "class"), values) for name, values in by_class(logit).items()},
        },
        coords={"case": [f"{prefix}{i}" for i in range(number)], "class": list("abc")},
    )
    observed = xr.Dataset({"label": ("case", label)}, coords={"case": posterior["case"]})
    tree = xr.DataTree.from_dict({"/posterior": posterior, "/observed_data": observed})
    tree.attrs = {"parameters_sha256": "one", "seed": 0, "log_likelihood_of": "held-out"}
    return tree
