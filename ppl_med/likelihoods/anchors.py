"""Anchors and boxes: overlap, which anchor stands for which object, and edges in units of anchors.

A box is (x_min, y_min, x_max, y_max) in pixels. Two encodings of its edges relative to an anchor of
width w, height h and middle (x, y):

    edges     ((x_min - a_x_min) / w, (y_min - a_y_min) / h, (x_max - a_x_max) / w, ...)
    deltas    ((middle_x - x) / w, (middle_y - y) / h, log(width / w), log(height / h))

"edges" is linear in pixels: noise that is normal there is normal in pixels. "deltas" is that of
Ren et al., "Faster R-CNN", NeurIPS 2015, which pretrained nets speak; a normal in log width is
skewed in pixels.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Encoding = Literal["edges", "deltas"]
Match = Literal["all", "best", "centre"]

LARGEST_LOG = math.log(1000 / 16)  # of a width over its anchor's, as in torchvision
OBJECT, BACKGROUND = 0.5, 0.4  # overlaps from which an anchor is an object, and up to background
_ROUNDS = 3  # of asking for an anchor of one's own
CENTRE_RADIUS = 1.5  # of "centre", in anchors
LEVEL_SIZES = (4.0, 8.0)  # of "centre": reach of an object's far edge in anchors, by level


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of all pairs: (..., a, 4) and (..., b, 4) give (..., a, b)."""
    low = torch.maximum(first[..., :, None, :2], second[..., None, :, :2])
    high = torch.minimum(first[..., :, None, 2:], second[..., None, :, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    union = _area(first)[..., :, None] + _area(second)[..., None, :] - common
    return common / union.clamp(min=1e-9)


def encode(box: Tensor, anchor: Tensor, encoding: Encoding) -> Tensor:
    """Edges of boxes (..., 4) in units of their anchors (..., 4); see the module's text."""
    size = _size(anchor)
    if encoding == "edges":
        return (box - anchor) / torch.cat([size, size], -1)
    middle = (_middle(box) - _middle(anchor)) / size
    return torch.cat([middle, (_size(box).clamp(min=1e-3) / size).log()], -1)


def decode(code: Tensor, anchor: Tensor, encoding: Encoding) -> Tensor:
    """Boxes (..., 4) in pixels; undoes ``encode``."""
    size = _size(anchor)
    if encoding == "edges":
        return anchor + code * torch.cat([size, size], -1)
    middle = _middle(anchor) + code[..., :2] * size
    half = code[..., 2:].clamp(max=LARGEST_LOG).exp() * size / 2
    return torch.cat([middle - half, middle + half], -1)


def match_anchors(
    anchor: Tensor, box: Tensor, there: Tensor, usable: Tensor, match: Match
) -> tuple[Tensor, Tensor]:
    """Which object an anchor stands for.

    "all": the object with the largest overlap where that is 0.5 or more, background below 0.4, and
    neither between; besides, the anchor with the largest overlap with an object is the object's own
    (RetinaNet), and of objects that share such an anchor those that overlap it less take their next
    best. An object that overlaps no anchor is not seen. "best": own anchors alone stand for
    objects, others above 0.4 for nothing. "centre": anchors whose middle is inside an object, at
    most 1.5 anchors from its middle, and whose size fits the object's, the smallest object first
    (FCOS); an object without such an anchor is not seen.

    Args:
        anchor: Dims (case, anchor, 4).
        box: Dims (case, box, 4), finite.
        there: Whether a box is one, dims (case, box).
        usable: Whether an anchor is one, dims (case, anchor).
        match: The rule.

    Returns:
        Index of the object, dims (case, anchor), and what the anchor is: 1 object, 0 background, -1
        neither.
    """
    if match == "centre":
        return _by_centre(anchor, box, there, usable)
    shared = overlap(anchor, box) * (there[:, None, :] & usable[:, :, None])
    largest, index = shared.max(-1)
    state = torch.where(largest < BACKGROUND, 0, -1)
    if match == "all":
        state = torch.where(largest >= OBJECT, 1, state)
    owner = _owner(shared, there)
    index, state = torch.where(owner >= 0, owner, index), torch.where(owner >= 0, 1, state)
    return index, torch.where(usable, state, -1)


def _owner(shared: Tensor, there: Tensor) -> Tensor:
    """Object whose own anchor each is, -1 for none, from overlaps (case, anchor, box).

    Of objects that ask for one anchor the one that overlaps it most has it; the others ask again
    among those that are free.
    """
    owner = torch.full_like(shared[..., 0], -1, dtype=torch.long)
    numbers = torch.arange(shared.shape[2], device=shared.device)
    for _ in range(_ROUNDS):
        most, best = shared.max(1)
        asks = torch.where(there & (most > 0), most, 0)[:, None]
        asked, index = torch.zeros_like(shared).scatter(1, best[:, None], asks).max(-1)
        owner = torch.where(asked > 0, index, owner)
        there = there & ((owner.gather(1, best) != numbers) | (most <= 0))
        shared = torch.where((asked > 0)[..., None], 0, shared)
    return owner


def _by_centre(anchor: Tensor, box: Tensor, there: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    middle, size = _middle(anchor), _size(anchor).amax(-1)
    to_edges = torch.cat(
        [middle[:, :, None] - box[:, None, :, :2], box[:, None, :, 2:] - middle[:, :, None]], -1
    )
    near = (middle[:, :, None] - _middle(box)[:, None]).abs().amax(-1)
    far = to_edges.amax(-1)
    kept = torch.where(usable, size, torch.nan)
    first = kept.nan_to_num(nan=math.inf).amin(1, keepdim=True)
    last = kept.nan_to_num(nan=0).amax(1, keepdim=True)
    lowest = torch.where(size <= first, 0.0, size * LEVEL_SIZES[0])
    highest = torch.where(size >= last, math.inf, size * LEVEL_SIZES[1])
    fits = (to_edges.amin(-1) > 0) & (near <= CENTRE_RADIUS * size[:, :, None])
    fits &= (far >= lowest[:, :, None]) & (far <= highest[:, :, None])
    fits &= there[:, None, :] & usable[:, :, None]
    area = torch.where(fits, _area(box)[:, None, :], math.inf)
    index = area.argmin(-1)
    return index, torch.where(usable, fits.any(-1).long(), -1)


def _size(box: Tensor) -> Tensor:
    return box[..., 2:] - box[..., :2]


def _middle(box: Tensor) -> Tensor:
    return (box[..., 2:] + box[..., :2]) / 2


def _area(box: Tensor) -> Tensor:
    return _size(box).clamp(min=0).prod(-1)
