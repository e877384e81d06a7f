"""A batch by a score and noise: cheap, and less alike than the top of the score.

    power      drawn without replacement with probability ~ score^beta
    softmax    ~ exp(beta score)
    softrank   ~ rank^-beta, 1 the largest: needs no scale

Drawing so is the top of log-weight + Gumbel noise. A large ``beta`` gives the top of the score, 0
a random batch; 1 is the usual one of ``power``. A score of 0 is drawn only where nothing else is
left under ``power``; scores below 0 have no power and are refused.

Source: Kirsch et al., Stochastic Batch Acquisition, TMLR 2023, arXiv:2106.12059, section 4.
"""

import numpy as np

from ppl_med import checks

NOISES = ("power", "softmax", "softrank")


def log_weights(score: np.ndarray, noise: str, beta: float) -> np.ndarray:
    """Logarithm, up to a constant, of the probability with which each case is drawn first.

    Args:
        score: Scores (case,); -inf where there is none.
        noise: One of `NOISES`.
        beta: Strength of the score, 0 or more.

    Raises:
        ValueError: Unknown ``noise``, ``beta`` out of range, or negative scores under "power".
    """
    checks.choice("noise", noise, NOISES)
    beta = checks.finite("beta", beta, least=0)
    absent = np.isneginf(score)
    if noise == "power":
        lowest = float(score[~absent].min(initial=0.0))
        if lowest < 0:
            checks.reject(
                "noise", "'softmax' or 'softrank' for a score below 0", noise, f"it is {lowest:.3g}"
            )
        # 0 by rounding is as 0: both are drawn last, and by noise alone.
        return np.where(score > 1e-12, beta * np.log(np.maximum(score, 1e-300)), _LAST)
    if noise == "softmax":
        return np.where(absent, _LAST, beta * score)
    rank = np.empty(len(score))
    rank[np.argsort(-score, kind="stable")] = np.arange(1, len(score) + 1)
    return np.where(absent, _LAST, -beta * np.log(rank))


_LAST = -1e6
