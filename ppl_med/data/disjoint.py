"""Two sets of cases that must not share a member."""

from collections.abc import Hashable, Iterable


def check_disjoint(
    ids_a: Iterable[Hashable],
    ids_b: Iterable[Hashable],
    names: tuple[str, str] = ("calibration", "test"),
) -> None:
    """Raise if two sets of ids overlap.

    A threshold, a temperature or a network judged on the cases it was fitted to looks better
    than it is; the same holds for two images of one patient.

    Args:
        ids_a: Case (or patient) ids of the first set: a list or an array, str or int.
        ids_b: Ids of the second set.
        names: What the two sets are called in the message.

    Raises:
        ValueError: At least one id is in both; the message names up to five.
    """
    shared = sorted(_plain(ids_a) & _plain(ids_b), key=str)
    if shared:
        examples = ", ".join(map(repr, shared[:5])) + (", ..." if len(shared) > 5 else "")
        raise ValueError(
            f"{names[0]} and {names[1]} share {len(shared)} id(s): {examples}. "
            f"Remove them from one of the two sets."
        )


def _plain(ids: Iterable[Hashable]) -> set[Hashable]:
    """Ids as Python values, so that ``np.str_``, tensors and str compare equal."""
    listed = ids.tolist() if hasattr(ids, "tolist") else ids
    return {one.item() if hasattr(one, "item") else one for one in listed}
