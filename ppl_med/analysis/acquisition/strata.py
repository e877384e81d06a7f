"""Batches of maps in which every class has its turn.

Most of a batch is bought class by class: the class whose turn it is buys the case whose pixels
predicted to be of it are the least certain, by mean entropy; the rest is bought by the mean entropy
of all pixels. Both orders are noisy (`noisy_order`, "power"). So no large or easy class takes the
whole batch, and near copies of one case rarely do.

After ClaSP PE (TMLR 2026): two thirds of a batch stratified by predicted class, entropy of the
class, power noise. There the noise falls over the steps; here ``beta`` is an option of every call.
"""

import numpy as np

SHARE = 2 / 3  # of the batch, bought class by class


def stratified_order(
    of_class: np.ndarray, of_all: np.ndarray, turns: np.ndarray, num_stratified: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose a batch.

    Args:
        of_class: Noisy score of every case for each class (class, case); -inf where the class is
            not predicted.
        of_all: Noisy score of every case (case,).
        turns: Order of the classes (class,).
        num_stratified: Purchases made class by class, first.
        size: Purchases in all.

    Returns:
        Positions, and the class whose turn each was, -1 for the rest.
    """
    score = of_class.astype(np.float64)
    chosen: list[int] = []
    whose: list[int] = []
    present = [int(name) for name in turns if np.isfinite(score[name]).any()]
    turn = 0
    while len(chosen) < size:
        rest = [name for name in present if np.isfinite(score[name]).any()]
        if len(chosen) < num_stratified and rest:
            while present[turn % len(present)] not in rest:
                turn += 1
            name = present[turn % len(present)]
            turn += 1
            place = int(np.argmax(score[name]))
        else:
            name, left = -1, of_all.copy()
            left[chosen] = -np.inf
            place = int(np.argmax(left))
        chosen.append(place)
        whose.append(name)
        score[:, place] = -np.inf
    return np.array(chosen), np.array(whose)
