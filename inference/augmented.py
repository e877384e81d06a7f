"""``predict_augmented``: the same draws under the same augmentations, as one tree.

Draw s under augmentation a is `predict` with the weights of draw s on images that a has moved, and
noise of a case is the same under all of them: the two are crossed, so that their variances can be
told apart (`ppl_med.analysis.augmentation`). An augmentation drawn anew for every draw
could not do that.
"""

import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppl_med import storage
from ppl_med.axes import AUGMENTATION, SAMPLES, SPACE
from ppl_med.checks import a_path
from ppl_med.data.reversible import Augmentation, check_augmentations
from ppl_med.inference.adapted import adapted
from ppl_med.inference.batches import check_iterable, first_batch, num_cases_in
from ppl_med.inference.case_order import check_order
from ppl_med.inference.loader_generators import generators_restored
from ppl_med.inference.predictive import predict
from ppl_med.inference.process_group import num_ranks
from ppl_med.programs.sites import Program, argument_names


def predict_augmented(
    model: Program,
    guide: Program | None,
    batches: Any,
    augmentations: Sequence[Any],
    *,
    keys: Mapping[str, str] | None = None,
    store: str | Path | None = None,
    resume: bool = False,
    **options: Any,
) -> xr.DataTree:
    """Predict under every augmentation, with the same draws.

    Args:
        model: As in `predict`.
        guide: As in `predict`.
        batches: As in `predict`.
        augmentations: Such as ``ppl_med.data.symmetries(8)``; or functions of images (case,
            channel, *space), which are not undone. They are the same for all draws.
        keys: As in `predict`.
        store: None keeps the result in memory; ``"run.nc"`` also writes it; ``"run.zarr"`` predicts
            one augmentation after another into stores beside it, with bounded memory, joins them,
            and gives a lazy tree.
        resume: Go on with an interrupted ``store="*.zarr"``.
        **options: Further arguments of `predict`, such as ``draws``, ``seed``, ``keep``; not
            ``prior_draws``.

    Returns:
        The tree of `predict`, in which what depends on the image has the dim ``augmentation``
        behind ``draw``: (chain, draw, augmentation, case, ...). Maps are those of the images as
        they were given, NaN (-1 in integers) where a pixel had left the image. There is no
        ``log_likelihood`` of maps: average first, see ``analysis.tree.average_augmentations``.

    Raises:
        TypeError, ValueError, OSError: As `predict`; no augmentations; one that cannot be undone
            where the model predicts maps; batches in another order in every pass; several
            processes.
    """
    chosen = check_augmentations(augmentations)
    if num_ranks() > 1:
        raise ValueError(
            f"predict_augmented runs on one process, not on {num_ranks()}; start it without "
            "torchrun, or call predict"
        )
    if options.get("prior_draws"):
        raise ValueError("prior_draws: draws from the prior have no augmentations; use predict")
    if options.get("lossy") is not None:
        raise ValueError("lossy: draws under several augmentations are stored as they are")
    target, folder = _places(store, resume=resume)
    batches = adapted(batches, keys)
    check_iterable(batches)
    with generators_restored(batches):
        first = first_batch(batches)
    check_order(batches, first)
    moved, maps = _look(model, guide, first, options)
    if maps:
        _check_undone(chosen, maps)
    parts = []
    for index, one in enumerate(chosen):
        path = None if folder is None else folder / f"{index:03d}.zarr"
        with generators_restored(batches):
            source = _Augmented(batches, one, moved, one_size=bool(maps))
            tree = predict(model, guide, source, store=path, resume=resume, **options)
        parts.append(_undone(tree, one))
    result = _joined(parts, chosen)
    if target is None:
        return result
    storage.save(result, target)
    if folder is None:
        return result
    opened = xr.open_datatree(target, engine="zarr", consolidated=False, chunks={})
    shutil.rmtree(folder)
    return opened


class _Augmented:
    """Batches under one augmentation."""

    def __init__(
        self, batches: Any, augmentation: Augmentation, moved: Sequence[str], *, one_size: bool
    ) -> None:
        self.batches, self.augmentation = batches, augmentation
        self.moved, self.one_size = moved, one_size

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        first, size = 0, None
        for batch in self.batches:
            found = dict(batch)
            for name in self.moved:
                values = found[name]
                size = values.shape[2:] if size is None else size
                if self.one_size and values.shape[2:] != size:
                    raise ValueError(
                        f"images have sizes {tuple(size)} and {tuple(values.shape[2:])}; under "
                        "augmentations, maps are of images of one size: predict each size apart"
                    )
                found[name] = self.augmentation.move(values, first)
                if found[name].shape != values.shape:
                    raise ValueError(
                        f"augmentation {self.augmentation.name!r} turned shape "
                        f"{tuple(values.shape)} into {tuple(found[name].shape)}; it must keep the "
                        "shape"
                    )
            first += num_cases_in(batch)
            yield found


def _places(store: str | Path | None, *, resume: bool) -> tuple[Path | None, Path | None]:
    """Where the result goes, and the folder of the stores of single augmentations."""
    if store is None:
        if resume:
            raise ValueError("resume needs store='*.zarr', which is written on the way")
        return None, None
    target = a_path("store", store)
    if target.suffix not in (".nc", ".zarr"):
        raise ValueError(f"store must end in .nc or .zarr, got {str(target)!r}")
    if target.exists():
        raise FileExistsError(f"store {target} exists; load it, or give another path")
    if target.suffix == ".nc":
        return target, None
    folder = target.with_name(f"{target.name}.augmentations")
    if folder.exists() and not resume:
        raise FileExistsError(f"{folder} is an interrupted run; pass resume=True, or delete it")
    folder.mkdir(exist_ok=True)
    return target, folder


def _look(
    model: Program, guide: Program | None, first: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Names of the inputs that are moved, and of the maps that are predicted, by one draw."""
    few = {**options, "draws": 1, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the prediction itself warns
        tree = predict(model, guide, [first], **few)
    observed = str(tree.attrs.get("observations", "")).split(", ")
    names = argument_names(model)
    size = first[names[0]].shape[2:]
    moved = [
        name
        for name in names
        if name not in observed and isinstance(first.get(name), Tensor)
        if first[name].ndim > 2 and first[name].shape[2:] == size
    ]
    return moved, [name for group in tree.children.values() for name in _maps(group.to_dataset())]


def _maps(group: xr.Dataset) -> list[str]:
    return [str(name) for name, array in group.items() if _space(array)]


def _space(array: xr.DataArray) -> list[str]:
    found = [name for name in SPACE[3] if name in array.dims]
    return found if len(found) > 1 and {*SAMPLES} <= set(array.dims) else []


def _check_undone(augmentations: Sequence[Augmentation], maps: Sequence[str]) -> None:
    for one in augmentations:
        if one.undo is None:
            raise ValueError(
                f"augmentation {one.name!r} cannot be undone, and the model predicts maps: "
                f"{', '.join(sorted(set(maps)))}. Use symmetries or turns, or give Augmentation("
                "name, move, undo), whose undo returns maps as they are where no pixel moves"
            )


def _undone(tree: xr.DataTree, augmentation: Augmentation) -> xr.DataTree:
    """The tree with its maps moved back, without log-likelihoods of masks that were not moved."""
    groups = {}
    for name, node in tree.children.items():
        group = node.to_dataset()
        if name == "log_likelihood":
            observed = tree["observed_data"].to_dataset()
            group = group.drop_vars([n for n in group if set(observed[n].dims) & set(SPACE[3])])
        for variable in _maps(group):
            group[variable] = _moved_back(group[variable], augmentation)
        if group.data_vars:
            groups[f"/{name}"] = group
    result = xr.DataTree.from_dict(groups)
    result.attrs = dict(tree.attrs)
    return result


def _moved_back(array: xr.DataArray, augmentation: Augmentation) -> xr.DataArray:
    assert augmentation.undo is not None
    undo, space = augmentation.undo, _space(array)

    def of_block(values: np.ndarray) -> np.ndarray:
        return undo(torch.from_numpy(np.ascontiguousarray(values))).contiguous().numpy()

    back = xr.apply_ufunc(
        of_block,
        array,
        input_core_dims=[space],
        output_core_dims=[space],
        dask="parallelized",
        dask_gufunc_kwargs={"allow_rechunk": True},  # a map of many bytes lies in several chunks
        output_dtypes=[array.dtype],
        keep_attrs=True,
    )
    return back.transpose(*array.dims)


def _joined(parts: Sequence[xr.DataTree], augmentations: Sequence[Augmentation]) -> xr.DataTree:
    """One tree with the axis of augmentations behind that of draws."""
    index = xr.Variable(AUGMENTATION, [one.name for one in augmentations])
    groups = {}
    for name, node in parts[0].children.items():
        group = node.to_dataset()
        of_cases = [n for n, one in group.items() if {"draw", "case"} <= set(one.dims)]
        if of_cases:
            each = [part[name].to_dataset()[of_cases] for part in parts]
            try:
                joined = xr.concat(each, AUGMENTATION, join="exact", combine_attrs="override")
            except ValueError as error:
                raise ValueError(
                    f"cases differ from augmentation to augmentation ({error}): batches must come "
                    "in the same order in every pass, so do not shuffle them"
                ) from error
            front = (*SAMPLES, AUGMENTATION)
            group = group.drop_vars(of_cases).merge(joined.assign_coords({AUGMENTATION: index}))
            group = group.assign({n: group[n].transpose(*front, ...) for n in of_cases})
        groups[f"/{name}"] = group.drop_encoding()
    result = xr.DataTree.from_dict(groups)
    result.attrs = {**parts[0].attrs, "augmentations": len(augmentations)}
    result.attrs["wall_time_seconds"] = sum(part.attrs["wall_time_seconds"] for part in parts)
    return result
