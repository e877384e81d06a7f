"""What a figure needs from its input, checked before anything is drawn."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ppl_med.analysis.tree import Posterior, open_classes
from ppl_med.checks import choice, reject


def require_variables(
    dataset: xr.Dataset, argument: str, names: Iterable[str], source: str
) -> None:
    """Raise unless a Dataset holds the variables that a figure draws.

    Args:
        dataset: What the caller gave.
        argument: Its name in the caller's signature.
        names: Variables needed.
        source: The function that makes such a Dataset, for the message.

    Raises:
        TypeError: ``dataset`` is not an xarray Dataset.
        ValueError: A variable is missing.
    """
    if not isinstance(dataset, xr.Dataset):
        raise TypeError(
            f"{argument} must be an xarray.Dataset as {source} returns it, "
            f"got {type(dataset).__name__}"
        )
    missing = [name for name in names if name not in dataset]
    if missing:
        raise ValueError(
            f"{argument} has no {', '.join(missing)} "
            f"(it has {', '.join(map(str, dataset.data_vars))}); "
            f"pass the result of {source}"
        )


def require_named(
    datasets: xr.Dataset | Mapping[str, xr.Dataset],
    argument: str,
    names: Iterable[str],
    source: str,
) -> dict[str, xr.Dataset]:
    """Check what a figure draws one or several of.

    Args:
        datasets: What the caller gave: one Dataset, or several by name.
        argument: Its name in the caller's signature.
        names: Variables that each needs.
        source: The function that makes such a Dataset, for the messages.

    Returns:
        The Datasets by name; a single one has the name "".

    Raises:
        TypeError: One is not an xarray Dataset.
        ValueError: There is none, or a variable is missing.
    """
    named = {"": datasets} if isinstance(datasets, xr.Dataset) else dict(datasets)
    if not named:
        raise ValueError(f"{argument} is empty; give at least one result of {source}")
    wanted = tuple(names)
    for name, dataset in named.items():
        require_variables(dataset, one_of(argument, name), wanted, source)
    return named


def one_of(argument: str, name: str) -> str:
    """How a message calls one of the Datasets of ``require_named``."""
    return f"{argument}[{name!r}]" if name else argument


def require_dims(array: xr.DataArray, argument: str, dims: Iterable[str]) -> xr.DataArray:
    """Put the axes of an array in a known order.

    Args:
        array: What the caller gave.
        argument: Its name, for the message.
        dims: The axes it must have, no more and no fewer.

    Returns:
        The array with its axes in the order of ``dims``.

    Raises:
        ValueError: An axis is missing or left over.
    """
    wanted = tuple(dims)
    if set(array.dims) != set(wanted):
        raise ValueError(
            f"{argument} must have the dimensions {wanted}, got {array.dims}; "
            "select or average the others first"
        )
    return array.transpose(*wanted)


def case_positions(array: xr.DataArray, case: Hashable | Sequence[Hashable] | None) -> list[int]:
    """Find cases by their ids.

    Args:
        array: What holds them, with the dimension case.
        case: One id or several; None means the first four cases.

    Returns:
        Positions along case.

    Raises:
        ValueError: An id is unknown, or there is none.
    """
    if case is None:
        return list(range(min(4, array.sizes["case"])))
    wanted = [case] if isinstance(case, str | int | np.integer) else list(case)  # type: ignore[call-overload]
    ids = array["case"].to_numpy().tolist()
    place = {one: index for index, one in enumerate(ids)}
    unknown = [one for one in wanted if one not in place]
    if unknown or not wanted:
        reject("case", f"ids of the tree, such as {ids[:3]}", unknown or wanted)
    return [place[one] for one in wanted]


def class_per_case(tree: Posterior) -> tuple[xr.DataArray, NDArray[np.int64] | None]:
    """Read the probabilities and the observed classes of a tree with one class per case.

    Returns:
        ``probs`` (chain, draw, case, class) and, where the tree holds observations, the class index
        of every case, -1 where it was not labelled.

    Raises:
        TypeError, ValueError: The probabilities or labels are malformed or per pixel.
    """
    found = open_classes(tree)
    if found.array.ndim != 4:
        reject(
            "tree", "a tree with one class per case", found.array.dims, "its probs are per pixel"
        )
    label = None if found.observation() is None else found.case_labels().to_numpy()
    return found.read(), label


def one_class(dataset: xr.Dataset, class_name: str | None) -> xr.Dataset:
    """Choose a class by name; None means the first.

    Raises:
        ValueError: The name is unknown.
    """
    names = [str(name) for name in dataset["class"].values]
    wanted = names[0] if class_name is None else choice("class_name", class_name, names)
    return dataset.isel({"class": names.index(wanted)})


def require_labels(label: Any, num_cases: int) -> NDArray:
    """Check that there is one label per case.

    Raises:
        ValueError: There is not.
    """
    labels = np.asarray(label)
    if labels.shape != (num_cases,):
        reject("label", f"one value per case, shape ({num_cases},)", labels.shape)
    return labels
