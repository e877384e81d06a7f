"""What out-of-distribution scores read off a tree: probabilities, logits and features of draws.

    posterior/probs             (chain, draw, case, class)
    posterior/logit             (chain, draw, case, class)   predict(..., keep=("logit",))
    posterior/feature:<layer>   (chain, draw, case, unit)    predict(..., keep=("feature:<layer>",))
    posterior/kernel            (chain, draw, case, class)   of a DUQClassifier
    posterior/dividend          (chain, draw, case, class)   of a GeneralizedODINClassifier,
    posterior/divisor           (chain, draw, case)          with this

or, of a model that generates the image, such as ``ImageVAE``,

    log_likelihood/<image>      (chain, draw, case)          log p(image | code), nats
    log_prior/<code>            (chain, draw, case)          log p(code)
    log_guide/<code>            (chain, draw, case)          log q(code | image)
    posterior/<code>            (chain, draw, case, ...)     drawn from q
    posterior/error             (chain, draw, case)          length of image - decoded image
    observed_data/<image>       (case, channel, [depth,] row, col)

Scores are computed by runs of cases, all draws of them, so that the memory they take does not grow
with the cases. What is learnt is learnt draw by draw, from the table (case, unit) of one draw.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import blake2b

import numpy as np
import xarray as xr

from ppl_med.analysis.tree import (
    case_ids,
    find_group,
    functions_of,
    has_probs,
    open_classes,
    open_layers,
    split_blocks,
)
from ppl_med.axes import SAMPLES, SPACE

CODES = "log_guide"


@dataclass(frozen=True)
class Outputs:
    """Outputs of all draws for some cases, not yet read.

    Args:
        tree: The tree of `predict`.
        array: Probabilities (chain, draw, case, class), of masks with space behind; or
            log-likelihoods of the image (chain, draw, case) where the model generates it.
        layer: Layer of the features, or None for the only one that was kept.
    """

    tree: xr.DataTree
    array: xr.DataArray
    layer: str | None = None

    @property
    def generates(self) -> bool:
        """Whether the model generates the image, and predicts no classes."""
        return "class" not in self.array.dims

    @property
    def probs(self) -> xr.DataArray:
        """Probabilities (chain, draw, case, class).

        Raises:
            ValueError: The model generates the image.
        """
        if self.generates:
            raise ValueError(
                "tree is of a model that generates the image and has no class probabilities, which "
                "this score needs; its own scores are those of ppl_med.analysis.ood.generative."
            )
        return self.array

    @property
    def ids(self) -> np.ndarray:
        """Ids of the cases."""
        return case_ids(self.array, str(self.array.name))

    @property
    def samples(self) -> tuple[int, int]:
        """Numbers of chains and draws."""
        return self.array.sizes["chain"], self.array.sizes["draw"]

    def places(self) -> list[tuple[int, int]]:
        """Chain and draw of every sample."""
        return list(np.ndindex(*self.samples))

    def blocks(self, *read: xr.DataArray) -> Iterator["Outputs"]:
        """Yield runs of the cases, in their order, of which these arrays fit the memory limit."""
        per_case = sum(array.size // max(array.sizes["case"], 1) for array in read)
        cases = self.array.sizes["case"]
        for block in split_blocks({"case": cases}, per_case):
            if block["case"] == slice(0, cases):
                yield self
            else:
                yield Outputs(self.tree.isel(block), self.array.isel(block), self.layer)

    def functions(self, *arrays: xr.DataArray) -> np.ndarray:
        """Number the functions (chain, draw): draws that agree in all values have one number."""
        result = np.empty(self.samples, np.int64)
        names: dict[bytes, int] = {}
        for place in self.places():
            digest = blake2b(digest_size=16)
            for array in arrays:
                digest.update(np.ascontiguousarray(array[place].values).data)
            result[place] = names.setdefault(digest.digest(), len(names))
        return result

    def logit(self) -> xr.DataArray:
        """Return the kept logits (chain, draw, case, class), not yet read.

        Raises:
            ValueError: They were not kept.
        """
        absent = (
            "The posterior group holds no logit, and probabilities do not tell it: their log "
            "lacks what all logits share. Call predict(..., keep=('logit',))."
        )
        return self._posterior("logit", absent).transpose(*SAMPLES, "case", "class")

    def stored(self, name: str, *last: str, model: str) -> xr.DataArray:
        """Return what a model stores beside its probabilities, not yet read.

        Dims (chain, draw, case, *last), of masks with space before the last.

        Raises:
            ValueError: The tree is of another model than the named one.
        """
        absent = (
            f"The posterior group holds no {name}, which predict stores of a {model} alone: "
            "choose another score, or train that model."
        )
        return self._posterior(name, absent).transpose(*SAMPLES, "case", ..., *last)

    def layers(self) -> list[str]:
        """Names of the layers whose features were kept.

        Raises:
            ValueError: None were.
        """
        kept = open_layers(self.tree)
        if not kept:
            raise ValueError(
                "The posterior group holds no features; call predict(..., "
                "keep=('feature:<name of a layer>',))."
            )
        return list(kept)

    def feature(self) -> xr.DataArray:
        """Return the kept features of the layer (chain, draw, case, unit), not yet read.

        Raises:
            ValueError: No features were kept, not those of this layer, or those of several.
        """
        layers = self.layers()
        if self.layer is None and len(layers) > 1:
            raise ValueError(f"Features of the layers {layers} were kept; pass layer=.")
        layer = layers[0] if self.layer is None else self.layer
        if layer not in layers:
            near = get_close_matches(layer, layers, n=1)
            hint = f", such as {near[0]!r}" if near else ""
            raise ValueError(f"layer must be one of {layers}{hint}, got {layer!r}.")
        return open_layers(self.tree)[layer]

    def generated(self) -> xr.DataArray:
        """Return the log-likelihoods of the image (chain, draw, case).

        Raises:
            ValueError: The model predicts classes.
        """
        if not self.generates:
            raise ValueError(
                "tree is of a classifier, and this score needs a model that generates the image: "
                "predict with an ImageVAE."
            )
        return self.array

    def codes(self) -> list[xr.DataArray]:
        """Return the codes of images (chain, draw, case, ...), not yet read.

        Raises:
            ValueError: There are none, or they were not stored.
        """
        group = find_group(self.tree, "posterior")
        names = sorted(map(str, find_group(self.tree, CODES)))
        absent = [name for name in names if name not in group]
        if absent or not names:
            raise ValueError(f"the posterior group holds no {absent or 'codes of images'}.")
        return [group[name].transpose(*SAMPLES, "case", ...) for name in names]

    def error(self) -> xr.DataArray:
        """Return the length of what codes leave of the image (chain, draw, case), not yet read.

        Raises:
            ValueError: It was not kept.
        """
        absent = (
            "The posterior group holds no error, the length of image - decoded image; in a "
            "program of your own note it by pyro.deterministic('error', ..., event_dim=0)."
        )
        return self._posterior("error", absent).transpose(*SAMPLES, "case")

    def observed(self) -> xr.DataArray:
        """Return the observed images (case, ...), not yet read."""
        name = self.generated().name
        group = find_group(self.tree, "observed_data")
        if name not in group:
            raise ValueError(f"observed_data holds no {name}, the images that were predicted.")
        return group[name].transpose("case", ...)

    def _posterior(self, name: str, absent: str) -> xr.DataArray:
        """A variable of the posterior group; ``absent`` is the error where it is not there."""
        group = find_group(self.tree, "posterior")
        if name not in group:
            raise ValueError(absent)
        return group[name]

    def identity(self) -> dict[str, str]:
        """Return what tells that draws of two trees are the same functions, where it is known."""
        return functions_of(self.tree)


def table(array: xr.DataArray, place: tuple[int, int]) -> np.ndarray:
    """Return the values (case, ...) of one draw, float64.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    values = array[place].values.astype(np.float64)
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise ValueError(
            f"{array.name} holds {bad} NaN or infinite values; drop those cases or find the draw "
            "that diverged."
        )
    return values


def open_outputs(tree: xr.DataTree, layer: str | None = None) -> Outputs:
    """Find what a tree of a classifier, or of a model that generates images, holds.

    Args:
        tree: The tree of `predict`, of one class per case, of masks, or with the groups "log_guide"
            and "log_likelihood" of generated images; nothing of it is read yet.
        layer: Layer of the features; None for the only one there is.

    Raises:
        TypeError: ``tree`` is no DataTree.
        ValueError: No probabilities of classes.
    """
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"tree must be the DataTree of predict, not {type(tree).__name__}.")
    if CODES in tree.children and not has_probs(tree):
        return Outputs(tree, _density(tree), layer)
    probs = open_classes(tree, copies=True).array
    if set(probs.dims[4:]) - set(SPACE[3]):
        raise ValueError(
            f"probs has dimensions {probs.dims}: scores are of cases. Select one finding."
        )
    return Outputs(tree, probs, layer)


def _density(tree: xr.DataTree) -> xr.DataArray:
    """Log-likelihoods of the one observed site of a model that generates it."""
    group = find_group(tree, "log_likelihood")
    names = [str(name) for name in group]
    if len(names) != 1 or set(group[names[0]].dims) != {*SAMPLES, "case"}:
        raise ValueError(
            f"log_likelihood holds {names}; scores of a model that generates the image need that "
            "of one site, (chain, draw, case). Predict on batches with the image."
        )
    return group[names[0]].transpose(*SAMPLES, "case")
