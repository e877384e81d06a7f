"""What a likelihood is to models, to ``predict`` and to a resumed run."""

import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_med.axes import dims


class Likelihood(nn.Module, ABC):
    """From a network's output to an observed site.

    A subclass says how many outputs it needs and which distribution they give; everything else has
    a default. ``predict`` reads the distribution: log-densities, stored parameters and quantiles of
    the usual ones are known, and those of a new one are registered beside it (``stored``,
    ``inverse_transform``). Learned parameters need ``reset_parameters``, which an ensemble calls.

    Attributes:
        site: Name of the observed site.
        event: Names of the axes after the case, such as ("row", "col") for one value per pixel.
        partial: Whether an entry may be missing: -1 among classes, NaN among numbers.
        training_loss: Only where a loss is trained in the place of the log-density: its name.
        no_density: Whether that loss stands in the place of the log-density at prediction, too, so
            that no score may be made of it.
    """

    site: str
    event: tuple[str, ...]
    partial: bool = False
    training_loss: str
    no_density: bool = False

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Channels that the network must have."""

    @abstractmethod
    def distribution(self, output: Tensor) -> Any:
        """The distribution of one entry, batch dims (..., case, *event).

        Args:
            output: Dims (..., case, output, *event); float32 in training, else float64.
        """

    def prediction(self, output: Tensor) -> Tensor:
        """What explanations differentiate, dims (case, ..., *event): numbers as the network's.

        Of classes, logits whose softmax over the second axis is the probability that ``predict``
        stores; one column is the log-odds of the second class.
        """
        return output

    @property
    def coords(self) -> dict[str, list[Any]]:
        """Coordinates of the axes that stored parameters have of their own."""
        return {}

    def settings(self) -> str:
        """What a resumed run must share and no shape shows."""
        return settings_of(self)

    def forward(self, output: Tensor, value: Tensor | None) -> None:
        """Observe the site, inside the plate of cases.

        Args:
            output: The network's, dims (case, output, *event), perhaps with dims before the case,
                such as of particles.
            value: The observation, dims (case, *event), or None to draw it.
        """
        output = output.to(precision(output, training=self.training))
        observe(self.site, self.distribution(output), self.event, value)

    def check_fits(self, site: str, event: tuple[str, ...]) -> None:
        """Raise a ``ValueError`` unless the likelihood is of a site and its axes."""
        if (self.site, tuple(self.event)) != (site, event):
            raise ValueError(
                f"likelihood must be of site {site!r} and axes {event}, got site {self.site!r} "
                f"and axes {self.event}; build it with event={event}, site={site!r}"
            )

    def check_output(self, output: Any, image: Tensor) -> None:
        """Raise a ``ValueError`` unless an output has one value per case, or pixel of the image."""
        check_tensor(output)
        pixels = "col" in self.event
        if pixels and image.ndim - 2 != len(self.event):
            raise ValueError(
                f"image has shape {tuple(image.shape)}, {image.ndim - 2} axes of space, but the "
                f"model predicts a value along {', '.join(self.event)}; build it with "
                f"spatial_dims={image.ndim - 2}"
            )
        expected = (len(image), self.num_outputs, *(image.shape[2:] if pixels else ()))
        if tuple(output.shape) != expected:
            raise ValueError(
                f"net gave an output of shape {tuple(output.shape)} but {expected} is needed: "
                f"{type(self).__name__} takes {self.num_outputs} output(s) per "
                + ("pixel of the image" if pixels else "case")
            )


def check_tensor(output: Any) -> None:
    """Raise a ``ValueError`` where a network returned several outputs in the place of a tensor."""
    if isinstance(output, Tensor):
        return
    found, key = type(output).__name__, "0"
    if isinstance(output, Mapping):
        found, key = f"{found} with the keys {[*output]}", repr(next(iter(output), "out"))
    elif isinstance(output, tuple | list):
        found = f"{found} of {len(output)} outputs"
    raise ValueError(
        f"net gave a {found}, and one tensor is needed; choose an output, such as "
        f"SelectOutput(net, {key}) of ppl_med.networks, or switch the others off in the net"
    )


def precision(output: Tensor, *, training: bool) -> torch.dtype:
    """float32 in training, float64 at prediction, where float32 log-densities tie."""
    return torch.float32 if training and output.dtype != torch.float64 else torch.float64


def observe(
    site: str, fn: Any, event: tuple[str, ...], value: Tensor | None, *, stored: bool = True
) -> None:
    """Observe a site: the sample statement that all likelihoods share.

    Args:
        site: Its name.
        fn: Distribution of one entry, batch dims (..., case, *event).
        event: Names of the axes after the case.
        value: The observation, or None to draw it.
        stored: Whether `predict` keeps the distribution's parameters, and draws of it.

    Raises:
        ValueError: If the observation has another shape than the distribution: broadcast, every
            case would be scored against every other.
    """
    fn = fn.to_event(len(event)) if event else fn
    if value is not None:
        _check_shape(site, tuple(value.shape), fn)
    plain = stored and not event
    pyro.sample(site, fn, obs=value, infer=None if plain else dims(*event, stored=stored))


def note(name: str, value: Tensor, *axes: str) -> None:
    """Have ``predict`` store numbers of every case: ``pyro.deterministic`` with named axes.

    Args:
        name: Of the variable in the tree.
        value: Dims (case, *axes), inside the plate of cases.
        axes: Names of the axes after the case.
    """
    fn = dist.Delta(value, event_dim=len(axes)).mask(False)
    pyro.sample(name, fn, obs=value, infer={"_deterministic": True, **dims(*axes)})


def _check_shape(site: str, shape: tuple[int, ...], fn: Any) -> None:
    inner = tuple(fn.event_shape)
    outer = len(shape) - len(inner)
    expected = tuple(fn.batch_shape)[-outer:] + inner if outer > 0 else tuple(fn.shape())
    if shape != expected:
        extra = len(shape) > len(expected) and shape[1] == 1
        raise ValueError(
            f"{site} has shape {shape}, but {expected} is needed, one entry for every one the "
            f"network predicts" + (f": use {site}[:, 0]" if extra else "")
        )


def settings_of(part: Any) -> str:
    """Class name and plain public attributes of a part of a model."""
    values = {n: v.item() if isinstance(v, np.generic) else v for n, v in vars(part).items()}
    plain = [
        f"{name}={value!r}"
        for name, value in values.items()
        if not name.startswith("_")
        and name != "training"
        and isinstance(value, numbers.Real | str | list | tuple)
    ]
    return f"{type(part).__name__}({', '.join(plain)})"
