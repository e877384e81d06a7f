"""The files behind a data set of dicts, looked at before any training: are they there, and alike?

MONAI's data sets hold a list of dicts of paths, ``data``, and load them by ``LoadImaged``. Only
headers are read. What the pipeline brings to one spacing itself (``Spacingd``) is not compared.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset

LOADERS = ("LoadImaged", "LoadImage")
RESAMPLERS = ("Spacingd", "SpatialResampled", "ResampleToMatchd", "Resized")
SAME_SPACING = 0.01  # of the spacing, which scanners round
MOST_SHOWN = 3
NIFTI = (".nii", ".nii.gz")


def source_items(dataset: Any) -> list[Mapping[str, Any]]:
    """The dicts that a data set loads from; none where it holds no such list."""
    if isinstance(dataset, Subset):
        whole = source_items(dataset.dataset)
        return [whole[index] for index in dataset.indices] if whole else []
    items: Any = getattr(dataset, "data", None)
    listed = isinstance(items, Sequence) and not isinstance(items, str)
    if not listed or not all(isinstance(one, Mapping) for one in items):
        return []
    return list(items)


def source_names(dataset: Any, keys: Mapping[str, str]) -> dict[str, str]:
    """Paths of the images -> ids that differ: file names without endings, or with their folders.

    Args:
        dataset: What is loaded.
        keys: Names in the data set -> names of the model's arguments.
    """
    images = [name for name, given in keys.items() if given == "image"] or ["image"]
    paths = [item.get(images[0]) for item in source_items(dataset)]
    if not paths or not all(isinstance(one, str | Path) for one in paths):
        return {}
    texts = [str(one) for one in paths]
    if len(set(texts)) < len(texts):
        return {}
    bare = [_bare(Path(one)) for one in texts]
    deepest = max(len(one.parts) for one in bare)
    for depth in range(1, deepest + 1):
        names = ["/".join(one.parts[-depth:]) for one in bare]
        if len(set(names)) == len(names):
            return dict(zip(texts, names, strict=True))
    return dict(zip(texts, texts, strict=True))


def check_sources(dataset: Any, *, headers: bool = False, spacing: bool = False) -> None:
    """Raise where files of a data set are missing or unlike each other.

    Args:
        dataset: Any; of one that holds no list of paths nothing is known.
        headers: Whether to compare the headers of NIfTI files, as before training.
        spacing: Whether they must then tell of one spacing.

    Raises:
        FileNotFoundError: Files are missing; how many, and the first of them.
        ValueError: Some NIfTI files hold volumes and others series of volumes (four axes), or they
            have different spacings that no transform makes one.
    """
    items = source_items(dataset)
    transforms = _transforms(dataset)
    loaded = [name for one in transforms if _kind(one) in LOADERS for name in _keys_of(one)]
    files = {
        name: [Path(path) for item in items for path in _paths(item.get(name))]
        for name in dict.fromkeys(loaded)
    }
    for name, paths in files.items():
        absent = [path for path in paths if not path.exists()]
        if absent:
            raise FileNotFoundError(
                f"{len(absent)} of {len(paths)} files of {name!r} are missing: "
                f"{_some(map(str, absent))}; correct the paths, or drop the cases"
            )
    for name, paths in files.items() if headers else ():
        _check_headers(name, paths, spacing and not _resampled(transforms, name))


def _check_headers(name: str, paths: Sequence[Path], spacing: bool) -> None:
    volumes = [path for path in paths if path.name.endswith(NIFTI)]
    if len(volumes) < 2:
        return
    import nibabel

    headers: dict[Path, Any] = {path: nibabel.load(path).header for path in volumes}
    ranks = {path: len(_shape(header)) for path, header in headers.items()}
    _check_alike(
        ranks,
        lambda one, other: one == other,
        lambda path, rank: f"{_short(path)} has shape {_shape(headers[path])}",
        f"files of {name!r} have different numbers of axes",
        "choose one volume of a series (4 axes) and save it by itself, or drop the cases",
    )
    if spacing:
        zooms = {path: np.array(header.get_zooms()[:3]) for path, header in headers.items()}
        _check_alike(
            zooms,
            lambda one, other: np.allclose(one, other, rtol=SAME_SPACING, atol=0),
            lambda path, zoom: f"{_short(path)} has {' x '.join(f'{z:.3g}' for z in zoom)} mm",
            f"files of {name!r} have different spacings",
            f"bring them to one by monai.transforms.Spacingd([{name!r}, ...], pixdim=...) or, "
            "where it is meant, pass DatasetBatches(dataset, mixed_spacing=True)",
        )


def _check_alike(
    found: Mapping[Path, Any],
    same: Callable[[Any, Any], bool],
    shown: Callable[[Path, Any], str],
    fault: str,
    fix: str,
) -> None:
    """Raise where some are unlike what most are."""
    texts = Counter(str(value) for value in found.values())
    usual = next(v for v in found.values() if str(v) == texts.most_common(1)[0][0])
    typical = next(path for path, value in found.items() if value is usual)
    unlike = {path: value for path, value in found.items() if not same(value, usual)}
    if unlike:
        others = _some(shown(path, value) for path, value in unlike.items())
        raise ValueError(
            f"{len(unlike)} of {len(found)} {fault}: {others}, where {shown(typical, usual)}; {fix}"
        )


def _transforms(dataset: Any) -> list[Any]:
    if isinstance(dataset, Subset):
        return _transforms(dataset.dataset)
    own = getattr(dataset, "transform", None)
    return list(getattr(own, "transforms", [own]))


def _resampled(transforms: Sequence[Any], name: str) -> bool:
    return any(name in _keys_of(one) for one in transforms if _kind(one) in RESAMPLERS)


def _kind(transform: Any) -> str:
    return type(transform).__name__


def _keys_of(transform: Any) -> tuple[str, ...]:
    keys = getattr(transform, "keys", ())
    return tuple(keys) if isinstance(keys, list | tuple) else ()


def _paths(value: Any) -> list[str | Path]:
    """Paths of one file or of several; none where the entry is an array."""
    many = value if isinstance(value, list | tuple) else [value]
    return [one for one in many if isinstance(one, str | Path)]


def _shape(header: Any) -> tuple[int, ...]:
    """Without axes of one entry behind the third."""
    shape = tuple(header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _bare(path: Path) -> Path:
    """A path without the endings of its file."""
    name = path.name.removesuffix(".gz")
    return path.with_name(Path(name).stem or name)


def _short(path: Path) -> str:
    """Name and folder: many lay out one folder a case."""
    return f"{path.parent.name}/{path.name}"


def _some(found: Any) -> str:
    listed = list(found)
    return ", ".join(listed[:MOST_SHOWN]) + (", ..." if len(listed) > MOST_SHOWN else "")
