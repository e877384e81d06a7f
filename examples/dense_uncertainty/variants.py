"""Four variants of one net, which differ in the uncertainty they model, and their training.

                 noise that depends on the input     distribution over weights
    baseline     no                                  no: one net, by maximum likelihood
    aleatoric    yes                                 no
    epistemic    no                                  yes, by dropout or an ensemble
    both         yes                                 yes

Dropout of a fixed rate is noise that the net cannot learn away: where the noise of the input is
small beside it, the net overrates that noise, for every pass is scored by itself. Members of an
ensemble have no such floor.

Reference: Kendall and Gal, "What uncertainties do we need in Bayesian deep learning for computer
vision?", NeurIPS 2017.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from torch import nn

from dense_uncertainty.options import VARIANTS, StudyOptions, Variant
from ppl_med import storage
from ppl_med.data import Batches
from ppl_med.inference import BernoulliDropout, Ensemble, PointEstimate, fit

SEVERAL = 4  # channels


class Cell(NamedTuple):
    """One run of a study."""

    variant: Variant
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.variant}-{self.fraction:g}-{self.seed}"


def cells(options: StudyOptions) -> list[Cell]:
    """All runs that were asked for, seed by seed, so that a study that stops has whole tables."""
    for fraction in options.fraction:
        if not 0 < fraction <= 1:
            raise ValueError(f"--fraction is {fraction}; fractions are above 0 and at most 1")
    return [
        Cell(variant, fraction, seed)
        for seed in options.seed
        for fraction in options.fraction
        for variant in options.variant
    ]


def learns_noise(variant: Variant) -> bool:
    """Whether the net gives the noise of every pixel."""
    return variant in ("aleatoric", "both")


def draws_weights(variant: Variant) -> bool:
    """Whether there is a distribution over weights."""
    return variant in ("epistemic", "both")


def guide_of(model: nn.Module, variant: Variant, options: StudyOptions, seed: int) -> Any:
    """Dropout or an ensemble where weights are drawn, maximum likelihood elsewhere."""

    def point(member: Any) -> PointEstimate:
        return PointEstimate(member, use_prior=False)

    if not draws_weights(variant):
        return point(model)
    if options.guide == "dropout":
        return dropout(model, options.rate)
    return Ensemble(model, point, options.members, seed=first_seed(variant, options, seed))


def dropout(model: Any, rate: float) -> BernoulliDropout:
    """Dropout in every layer that reads several channels.

    A mask on the others, at the ends of the net, would drop a colour or a class.

    Args:
        model: Its ``network`` has random weights.
        rate: Probability that a channel is dropped.
    """
    entries = [entry for entry in model.network.layout.entries if entry.is_layer_weight]
    wide = [one for one in entries if one.shape[0 if one.transposed else 1] >= SEVERAL]
    return BernoulliDropout(model, {entry.name: rate for entry in wide})


def first_seed(variant: Variant, options: StudyOptions, seed: int) -> int:
    """Seed of a run; members of an ensemble use this and the following ones."""
    several = draws_weights(variant) and options.guide == "ensemble"
    return seed * options.members if several else seed


def draws_of(variant: Variant, options: StudyOptions) -> int:
    """Draws of every member, or of the one net."""
    several = draws_weights(variant) and options.guide == "ensemble"
    return draws_each(options.draws, options.members) if several else options.draws


def draws_each(draws: int, members: int) -> int:
    """Draws of every member of an ensemble that has so many in all."""
    return max(1, draws // members)


def share(batches: Batches, fraction: float, seed: int) -> Batches:
    """Some of the training cases, drawn at random; the smaller fractions lie in the larger."""
    number = max(1, round(fraction * batches.num_cases))
    order = np.random.default_rng(seed).permutation(batches.num_cases)
    kept = np.sort(order[:number])
    return batches.subset(kept, seed=seed, batch_size=min(batches.batch_size, number))


def train(
    model: nn.Module, guide: Any, batches: Batches, options: StudyOptions, cell: Cell, folder: Path
) -> xr.Dataset:
    """Train a run, or resume it; the weights of a finished one are read.

    Args:
        model: Any model.
        guide: Its guide.
        batches: To train on.
        options: Steps, learning rate, device.
        cell: Which run.
        folder: Of the run, in which are checkpoint.pt and history.nc.

    Returns:
        The history of ``fit``.
    """
    folder.mkdir(exist_ok=True)
    history = fit(
        model,
        guide,
        batches,
        epochs=max(1, round(options.steps / len(batches))),
        learning_rate=options.learning_rate,
        schedule="cosine",
        precision=options.precision,
        device=options.device,
        seed=first_seed(cell.variant, options, cell.seed),
        checkpoint=folder / "checkpoint.pt",
        resume=options.resume,
    )
    storage.save(history, folder / "history.nc")
    return history


def assemble(parts: dict[Cell, xr.Dataset]) -> xr.Dataset:
    """Figures of all runs over (variant, fraction, seed); what was not run is NaN."""
    single = [
        part.expand_dims(variant=[cell.variant], fraction=[cell.fraction], seed=[cell.seed])
        for cell, part in parts.items()
    ]
    result = xr.combine_by_coords(single, join="outer", combine_attrs="override")
    assert isinstance(result, xr.Dataset)
    known = [name for name in VARIANTS if name in result["variant"].values]
    return result.sel(variant=known).sortby("fraction", ascending=False)


def spread(values: xr.DataArray, digits: int, factor: float = 1.0) -> str:
    """Mean over seeds, with their standard deviation where there are several; a dash for none."""
    known = factor * values.values[~np.isnan(values.values)]
    if not known.size:
        return "–"
    mean = f"{known.mean():.{digits}f}"
    return mean if known.size < 2 else f"{mean} ± {known.std(ddof=1):.{digits}f}"


def rows_of(
    result: xr.Dataset, columns: dict[str, tuple[str, int, float]], dim: str
) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table: a line for every variant, fraction and set of test images.

    Args:
        result: As ``assemble`` returns it, with figures along ``dim``.
        columns: For every figure its title, its digits and a factor.
        dim: Name of the axis of the test sets.
    """
    head = ["variant", "data", "test images", "seeds", *(title for title, _, _ in columns.values())]
    lines = []
    for place in _places(result, dim):
        part = result.sel(place)
        number = int(part.to_array().notnull().any("variable").sum())
        if number:
            line = [place["variant"], f"{place['fraction']:.0%}", place[dim], str(number)]
            lines.append([*line, *(spread(part[name], *rest) for name, (_, *rest) in
                                   columns.items())])  # fmt: skip
    return head, lines


def _places(result: xr.Dataset, dim: str) -> Sequence[dict[str, Any]]:
    """Selections in the order of the lines: test set, fraction, variant."""
    axes = (dim, "fraction", "variant")
    names = itertools.product(*(result[axis].values.tolist() for axis in axes))
    return [dict(zip(axes, at, strict=True)) for at in names]
