"""BatchBALD: a batch whose labels together tell most of the function, chosen greedily.

    I(y_1, ..., y_B; function) = H(y_1, ..., y_B) - sum_b mean_s H(p_s(y_b))        nats

The joint entropy counts once what two cases tell alike, so that a batch holds no near copies of
one another. A next case adds H(y | batch) - mean_s H(p_s(y)), where the entropy given the labels
of the batch is a mean over their configurations, of the mixture in which every draw is weighed by
how well it predicts that configuration:

    exact     all K^b configurations, weighed by their probability
    sampled   ``configurations`` of them, drawn in equal number from every draw, once K^b is more

What is added falls as the batch grows, and never exceeds BALD: cases are looked at in the order of
BALD until none of the rest can win. Greedy reaches 1 - 1/e of the best batch at least.

Source: Kirsch, van Amersfoort and Gal, BatchBALD, NeurIPS 2019, arXiv:1906.08158, sections 3.2
and 4; the weighed mixture is the same sum, with less noise and no joint table of its own.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp, softmax, xlogy

_BLOCK = 2**22  # numbers in a table of configurations, cases and classes


@dataclass(frozen=True)
class Batch:
    """What was chosen, in order.

    Args:
        chosen: Positions of the cases.
        joint: Information in nats of the batch up to and with each (case).
        influence: What every draw adds to that: its mean over draws is ``joint`` (draw, case).
        num_exact: How many of the first figures are exact.
    """

    chosen: np.ndarray
    joint: np.ndarray
    influence: np.ndarray
    num_exact: int


@dataclass
class Configurations:
    """Labels of the batch so far.

    Args:
        log_probability: Of each under every draw (configuration, draw).
        share: Weight of each, summing to one (configuration,).
        origin: Draw from which each was drawn; None where there are all of them.
    """

    log_probability: np.ndarray
    share: np.ndarray
    origin: np.ndarray | None = None

    def weights(self) -> np.ndarray:
        """Posterior share of every draw given each (configuration, draw)."""
        found: np.ndarray = softmax(self.log_probability, axis=1)
        return found

    def divergence(self) -> np.ndarray:
        """KL of the labels under each draw from those under the mixture (draw), nats."""
        draws = self.log_probability.shape[1]
        mixture = logsumexp(self.log_probability, axis=1) - np.log(draws)
        if self.origin is None:
            ratio = np.where(
                np.isfinite(self.log_probability), self.log_probability - mixture[:, None], 0.0
            )
            found: np.ndarray = (np.exp(self.log_probability) * ratio).sum(0)
            return found
        own = np.take_along_axis(self.log_probability, self.origin[:, None], 1)[:, 0] - mixture
        return np.bincount(self.origin, own, draws) / np.bincount(self.origin, minlength=draws)


def choose_batch(
    probs: np.ndarray, noise: np.ndarray, size: int, configurations: int, seed: int
) -> Batch:
    """Choose a batch greedily.

    Args:
        probs: Probabilities (draw, case, class).
        noise: Breaks ties (case,).
        size: How many cases.
        configurations: Most configurations of labels: K^b up to here is exact.
        seed: Of the configurations that are drawn.

    Returns:
        The batch.
    """
    draws, cases, classes = probs.shape
    mean = probs.mean(0)
    own_entropy = -xlogy(probs, probs).sum(2).mean(0)
    bound = -xlogy(mean, mean).sum(1) - own_entropy  # BALD: no case ever adds more
    state = Configurations(np.zeros((1, draws)), np.ones(1))
    rng = np.random.default_rng([seed, 1])
    table = probs.transpose(0, 2, 1).reshape(draws, classes, cases)
    log_table = np.log(table, where=table > 0, out=np.full(table.shape, -np.inf))
    chosen: list[int] = []
    joint, influence, exact, total = [], [], 0, 0.0
    for _ in range(size):
        gain = _best_gain(table, own_entropy, bound, noise, chosen, state)
        place, added = gain
        if state.origin is None and len(state.share) * classes > configurations:
            state = _drawn(log_table[:, :, chosen], configurations, rng)
        state = _extended(state, log_table[:, :, place], rng)
        exact += state.origin is None
        chosen.append(place)
        total += added
        divergence = state.divergence()
        joint.append(total)
        influence.append(divergence - divergence.mean() + total)
    return Batch(np.array(chosen), np.array(joint), np.array(influence).T, exact)


def _best_gain(
    table: np.ndarray,
    own_entropy: np.ndarray,
    bound: np.ndarray,
    noise: np.ndarray,
    chosen: list[int],
    state: Configurations,
) -> tuple[int, float]:
    """The case that adds most, and what it adds; cases in the order of their bounds."""
    draws, classes, _ = table.shape
    weights = state.weights()
    order = np.argsort(-bound, kind="stable")
    order = order[~np.isin(order, chosen)]
    best, winner = -np.inf, -1
    step = max(1, min(256, _BLOCK // (classes * len(weights))))
    for start in range(0, len(order), step):
        part = order[start : start + step]
        if bound[part[0]] < best - 1e-9:
            break
        flat = table[:, :, part].reshape(draws, -1)
        given = (weights @ flat).reshape(len(weights), classes, len(part))
        entropy = -(state.share @ xlogy(given, given).sum(1))
        added = np.round(entropy - own_entropy[part], 12)
        for place, value in zip(part, added, strict=True):
            if value > best or (value == best and noise[place] > noise[winner]):
                best, winner = float(value), int(place)
    return winner, best


def _extended(
    state: Configurations, log_table: np.ndarray, rng: np.random.Generator
) -> Configurations:
    """The labels of the batch with those of a further case, log_table (draw, class)."""
    if state.origin is not None:
        cumulative = np.exp(log_table).cumsum(1)[state.origin]
        uniform = rng.random(len(state.origin))[:, None] * cumulative[:, -1:]
        label = (cumulative <= uniform).sum(1).clip(max=log_table.shape[1] - 1)
        grown = state.log_probability + log_table.T[label]
        return Configurations(grown, state.share, state.origin)
    draws = len(log_table)
    grown = (state.log_probability[:, None] + log_table.T).reshape(-1, draws)
    possible = np.isfinite(grown).any(1)
    grown = grown[possible]
    share = np.exp(logsumexp(grown, axis=1) - np.log(draws))
    return Configurations(grown, share / share.sum())


def _drawn(log_table: np.ndarray, number: int, rng: np.random.Generator) -> Configurations:
    """Configurations of a batch (draw, class, case), as many from every draw."""
    draws = log_table.shape[0]
    origin = np.tile(np.arange(draws), max(1, number // draws))
    share = np.full(len(origin), 1 / len(origin))
    state = Configurations(np.zeros((len(origin), draws)), share, origin)
    for case in range(log_table.shape[2]):
        state = _extended(state, log_table[:, :, case], rng)
    return state
