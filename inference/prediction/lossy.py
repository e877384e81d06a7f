"""Results that are smaller than what was predicted, by request.

    float16        probs as logs in half precision: 2 bytes in the place of 8, of maps of 4; errors
                   are bounded, see ``ppl_med.storage.log_float16``; analyses read it as ``probs``
    argmax         of maps, the most probable class of every pixel of every draw: a byte; analyses
                   of sampled masks (``samples="mode"``) give the same, others are refused
    whole_draws    so many of the draws of each chain, evenly spaced, and of all draws the moments

Densities, observations, features and norms of weights stay as they are. The form is a function of
the draws of a group of cases, so what holds of a store (resuming, several processes) holds of it.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ppl_med.checks import choice, reject, whole
from ppl_med.inference.prediction.tree_builder import Chunk, Key, TreeBuilder
from ppl_med.storage import class_modes, log_float16
from ppl_med.storage.chains import MOMENTS
from ppl_med.storage.log_float16 import DIFFER

_OF_DRAWS = ("chain", "draw", "case")
_GROUPS = ("posterior", "prior")


@dataclass(frozen=True)
class Lossy:
    """How results are made smaller than they are: what is lost cannot be had again.

    Args:
        probs: "float16": class probabilities are stored as ``log_probs``, logs in half precision,
            at least -16. A probability of a distribution of entropy H is off by a share of
            (|log p| + H) / 2048 at most, or by 1.1e-7 a class; a probability below 1.1e-7 is read
            as about that, so that its negative logarithm is 16 nats at most, never infinite.
            Analyses read them as they read ``probs``. "argmax": of maps, the most probable class of
            every pixel, ``mode``, the first where several are, -1 behind the end of a smaller case.
            None: as they are.
        whole_draws: So many draws of each chain are kept, evenly spaced, which is what analyses
            see: their figures and errors are those of so many draws. Of all draws there is the
            group ``posterior_moments``: of every parameter and latent of a case ``<name>_mean`` and
            ``<name>_variance`` (divisor n - 1) over chains and draws, for classes
            ``expected_entropy`` (nats), of every observation ``<name>_log_mean``, the log of
            the mean likelihood (nats). None: all.
    """

    probs: Literal["float16", "argmax"] | None = None
    whole_draws: int | None = None

    def __post_init__(self) -> None:
        choice("probs", self.probs, ("float16", "argmax", None))
        if self.whole_draws is not None:
            whole("whole_draws", self.whole_draws)
        if self.probs is None and self.whole_draws is None:
            raise ValueError("Lossy() loses nothing: give probs='float16' or whole_draws")

    def __str__(self) -> str:
        parts = [f"probs={self.probs}"] if self.probs else []
        parts += [f"whole_draws={self.whole_draws}"] if self.whole_draws else []
        return ", ".join(parts)

    @staticmethod
    def check_asked(lossy: Any, draws: int, samples: int, builder: TreeBuilder) -> None:
        """Raise a ValueError unless ``lossy`` is None or fits what is to be predicted."""
        if lossy is None:
            return
        if not isinstance(lossy, Lossy):
            reject("lossy", 'None or Lossy(...), such as Lossy("float16")', lossy)
        lossy.check(draws, samples, builder)

    def check(self, draws: int, samples: int, builder: TreeBuilder) -> None:
        """Raise a ValueError where a prediction has nothing of what is to be made smaller."""
        if self.probs is not None:
            dims = list(builder.observed.values())
            if "class" not in builder.coords or len(dims) != 1:
                raise ValueError(
                    f"lossy: probs={self.probs!r} is of the class probabilities of one "
                    "observation, and this model predicts something else; leave probs out"
                )
            if self.probs == "argmax" and len(dims[0]) < 3:
                raise ValueError(
                    "lossy: probs='argmax' is of maps; of a label, two bytes a class are small: "
                    "take probs='float16'"
                )
            if self.probs == "argmax" and len(builder.coords["class"]) > class_modes.MOST:
                raise ValueError(
                    f"lossy: probs='argmax' is of {class_modes.MOST} classes at most; take "
                    "probs='float16'"
                )
        if self.whole_draws is None:
            return
        if samples > 1:
            raise ValueError(
                "lossy: whole_draws counts draws of the weights, and moments would count samples "
                "that share them as so many draws; leave samples or whole_draws out"
            )
        if self.whole_draws >= draws:
            raise ValueError(
                f"lossy: whole_draws={self.whole_draws} keeps all of {draws} draws; raise draws, "
                "or leave whole_draws out"
            )

    def applied(self, chunk: Chunk) -> Chunk:
        """The chunk in this form."""
        if self.whole_draws is not None:
            chunk = _with_moments(chunk, self.places(len(chunk.coords["draw"])))
        forms = {None: lambda chunk: chunk, "float16": _with_logs, "argmax": _with_modes}
        return forms[self.probs](chunk)

    def places(self, draws: int) -> NDArray[np.int64]:
        """Which draws of each chain are kept."""
        number = draws if self.whole_draws is None else self.whole_draws
        return np.linspace(0, draws - 1, number).round().astype(np.int64)

    def chosen(self, stats: xr.Dataset) -> xr.Dataset:
        """Figures of the sampler for the draws that are kept."""
        return stats.isel(draw=self.places(stats.sizes["draw"]))


def _with_moments(chunk: Chunk, places: NDArray[np.int64]) -> Chunk:
    _check_no_copies(chunk)
    found = replace(chunk, arrays={}, dims=dict(chunk.dims), attrs=dict(chunk.attrs))
    found.coords = {**chunk.coords, "draw": [*np.asarray(chunk.coords["draw"])[places].tolist()]}
    for key, values in chunk.arrays.items():
        if chunk.dims[key][:2] != _OF_DRAWS[:2]:
            found.arrays[key] = values
            continue
        found.make(key, (len(values), len(places), *values.shape[2:]), values.dtype)
        for old, new in zip(values, found.arrays[key], strict=True):
            for index, place in enumerate(places):
                new[index] = old[place]
        for name, (moment, dims, attrs) in _moments(key, values, chunk.dims[key]).items():
            own = (key[0] if key[0] in _GROUPS else _GROUPS[0]) + MOMENTS, name
            found.arrays[own], found.dims[own] = moment, dims
            number = {"num_draws": str(values.shape[0] * values.shape[1])}
            found.attrs[own] = {**chunk.attrs.get(key, {}), **attrs, **number}
    return found


def _check_no_copies(chunk: Chunk) -> None:
    """Raise where all that was predicted says that draws are copies, as of point estimates."""
    found = [
        values
        for (group, _), values in chunk.arrays.items()
        if group in _GROUPS and values.dtype.kind == "f"
    ]
    if chunk.start == 0 and found and not any(map(_one_is_alone, found)):
        raise ValueError(
            "lossy: draws are copies of each other, as of a point estimate, and moments would "
            "count each as a function; predict with draws=1, without whole_draws"
        )


def _moments(
    key: Key, values: NDArray, dims: tuple[str, ...]
) -> dict[str, tuple[NDArray, tuple[str, ...], dict[str, str]]]:
    """Moments over chains and draws, one draw after the other, with dims and attributes."""
    group, name = key
    draws = [draw for chain in values for draw in chain]
    if dims[:3] != _OF_DRAWS or values.dtype.kind != "f":
        return {}
    if group == "log_likelihood":
        total = draws[0].astype(np.float64)
        for draw in draws[1:]:
            total = np.logaddexp(total, draw)
        nats = {"units": "nats", "note": "log of the mean likelihood"}
        return {f"{name}_log_mean": (total - np.log(len(draws)), dims[2:], nats)}
    if group not in _GROUPS:
        return {}
    mean, squares = np.zeros(values.shape[2:]), np.zeros(values.shape[2:])
    entropy: Any = 0.0
    for number, draw in enumerate(draws, 1):
        gap = draw - mean
        mean += gap / number
        squares += gap * (draw - mean)
        if name == "probs" and "class" in dims:
            axis = dims[2:].index("class")
            one = draw.astype(np.float64)
            safe = np.where(one > 0, one, 1)
            entropy = entropy - np.where(one == one, one * np.log(safe), one).sum(axis)
    found: dict[str, Any] = {
        f"{name}_mean": (mean.astype(values.dtype), dims[2:], {}),
        f"{name}_variance": ((squares / max(len(draws) - 1, 1)).astype(values.dtype), dims[2:], {}),
    }
    if name == "probs" and "class" in dims:
        kept = tuple(dim for dim in dims[2:] if dim != "class")
        mean_entropy = (entropy / len(draws)).astype(values.dtype)
        found["expected_entropy"] = (mean_entropy, kept, {"units": "nats"})
    return found


def _with_logs(chunk: Chunk) -> Chunk:
    attrs = log_float16.attributes(len(chunk.coords["class"]))
    return _replaced(chunk, log_float16.NAME, np.float16, log_float16.encoded, attrs)


def _with_modes(chunk: Chunk) -> Chunk:
    attrs = class_modes.attributes(chunk.coords["class"])
    return _replaced(
        chunk, class_modes.NAME, class_modes.DTYPE, class_modes.encoded, attrs, "class"
    )


def _replaced(
    chunk: Chunk,
    name: str,
    dtype: type,
    encode: Callable[[NDArray, int], NDArray],
    attrs: dict[str, str],
    lost: str = "",
) -> Chunk:
    """With what probabilities are stored as, of each draw by itself; without the axis ``lost``."""
    found = replace(chunk, arrays={}, dims=dict(chunk.dims), attrs=dict(chunk.attrs))
    for key, values in chunk.arrays.items():
        dims = chunk.dims[key]
        if key[0] not in _GROUPS or key[1] != "probs":
            found.arrays[key] = values
            continue
        own = (key[0], name)
        shape = (size for dim, size in zip(dims, values.shape, strict=True) if dim != lost)
        found.make(own, tuple(shape), np.dtype(dtype))
        for place in np.ndindex(*values.shape[:2]):
            found.arrays[own][place] = encode(values[place], dims[2:].index("class"))
        differ = DIFFER if chunk.start == 0 and _one_is_alone(values) else {}
        found.dims[own] = tuple(dim for dim in dims if dim != lost)
        found.attrs[own] = {**chunk.attrs.get(key, {}), **attrs, **differ}
    return found


def _one_is_alone(values: NDArray) -> bool:
    """Whether some draw of a chain equals no other, so that they are no copies of each other."""
    for chain in values:
        digests = [blake2b(np.ascontiguousarray(draw).data).digest() for draw in chain]
        if min(Counter(digests).values()) == 1 and len(digests) > 1:
            return True
    return False
