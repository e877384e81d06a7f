"""Where a case lies in space, read off MONAI's MetaTensors.

    affine           (case, 4, 4)   index along the image's own axes -> mm to the right, front, top
    spacing          (case, axis)   mm along each axis of the image, the column norms of ``affine``
    image_shape      (case, axis)   pixels along each axis of the image
    original_affine  (case, 4, 4)   as ``affine``, of the file, before any transform
    spatial_shape    (case, axis)   pixels of the file
    filename_or_obj  (case)         path of the file

The axes are those of the array, whatever they are called: MONAI's x, y, z stand as depth, row, col.
A picture without a scale (PNG, JPEG) has a file name and nothing else of these: its affine in MONAI
is the identity, which is no millimetre.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def is_meta_tensor(value: Any) -> bool:
    """Whether a value is a tensor of MONAI's with metadata; does not import MONAI."""
    return isinstance(value, Tensor) and hasattr(value, "meta") and hasattr(value, "is_batch")


def plain(value: Any) -> Any:
    """A MetaTensor as the tensor it is; all else as it was given."""
    return value.as_tensor() if is_meta_tensor(value) else value


def geometry_of(image: Any) -> dict[str, Any]:
    """Entries of a batch of images (case, channel, ...) that say where they lie; see the module.

    Args:
        image: A batched MetaTensor; anything else has no entries.
    """
    if not is_meta_tensor(image) or not image.is_batch:
        return {}
    meta: Mapping[Any, Any] = image.meta
    size, space = len(image), image.ndim - 2
    found: dict[str, Any] = {}
    files = meta.get("filename_or_obj")
    if isinstance(files, list | tuple) and len(files) == size:
        if all(isinstance(one, str) for one in files):
            found["filename_or_obj"] = list(files)
    affine = _affine(meta, "affine", size)
    if affine is None or not 0 < space <= 3:
        return found
    found["affine"] = affine
    found["spacing"] = affine[:, :3, :space].norm(dim=1)
    found["image_shape"] = torch.tensor([image.shape[2:]] * size)
    original = _affine(meta, "original_affine", size)
    if original is not None:
        found["original_affine"] = original
    shape = meta.get("spatial_shape")
    if isinstance(shape, Tensor) and shape.ndim == 2 and len(shape) == size:
        found["spatial_shape"] = shape.long()
    return found


def _affine(meta: Mapping[Any, Any], name: str, size: int) -> Tensor | None:
    """Affines in mm towards right, front, up; None where the file tells of none."""
    spaces, value = meta.get("space"), meta.get(name)
    if "mode" in meta or spaces is None or not isinstance(value, Tensor):  # a mode of Pillow's
        return None
    affine = value.detach().double().cpu().clone()
    if affine.shape == (size, 3, 3):  # of a plane
        whole = torch.eye(4, dtype=torch.float64).repeat(size, 1, 1)
        whole[:, :2, :2], whole[:, :2, 3] = affine[:, :2, :2], affine[:, :2, 2]
        affine = whole
    if affine.shape != (size, 4, 4):
        return None
    if "filename_or_obj" not in meta and bool((affine == torch.eye(4)).all()):
        return None  # nobody gave one
    spaces = [spaces] * size if isinstance(spaces, str) else list(spaces)
    for case, one in enumerate(spaces):
        if str(one) == "LPS":
            affine[case, :2] *= -1
    return affine
