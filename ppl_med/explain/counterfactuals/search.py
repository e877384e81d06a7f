"""What all searches of a counterfactual share: arguments, predictive probability, judgement."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppl_med.axes import SAMPLES
from ppl_med.checks import finite, whole
from ppl_med.explain.counterfactuals.measures import as_numpy, described, distances, is_high
from ppl_med.explain.counterfactuals.posterior_predictive import PosteriorPredictive, check_draws
from ppl_med.explain.counterfactuals.realism import log_density
from ppl_med.explain.counterfactuals.tangent_search import Smooth
from ppl_med.explain.function_checks import Function, as_case, as_target, check_image, map_dims

Pair = tuple[Any, Any]
Bounds = tuple[float, float]
Ids = Sequence[str] | Sequence[int]


class Search:
    """Checked arguments of a search; they are those of ``minimal_perturbation``."""

    def __init__(
        self,
        functions: Sequence[Function],
        image: Tensor,
        target: int | Tensor,
        margin: float,
        steps: int,
        judges: Sequence[Function] | None,
        vae: Pair | None,
        particles: int,
        seed: int,
        case: Ids | None,
        bounds: Bounds | None = None,
    ) -> None:
        check_image(image)
        whole("particles", particles)
        whole("steps", steps)
        finite("margin", margin, 1e-3)
        self.image, self.target = image.detach(), as_target(target, image)
        self.bounds = _checked(bounds, self.image)
        self.ids = as_case(case, image)
        index = check_draws(functions, self.image, self.target)
        self.judge_index = index if judges is None else check_draws(judges, image, self.target)
        self.predictive = PosteriorPredictive(functions, self.target)
        judge = None if judges is None else PosteriorPredictive(judges, self.target)
        self.judge = judge or self.predictive
        self.vae, self.particles, self.seed = vae, particles, seed
        self.present = self.predictive.log_probs(self.image).logsumexp(0).argmax(1)
        if bool((self.present == self.target).any()):
            already = self.ids[as_numpy(self.present == self.target)].tolist()
            raise ValueError(
                f"target is the present class of cases {already[:8]}; ask for another class, or "
                "leave those cases out"
            )

    @property
    def log_odds(self) -> Smooth:
        """Log-odds of the target, as a function of the image."""
        return Smooth(self.predictive.log_odds, self.predictive.log_odds_and_slope)

    def loss_of_map(self) -> Smooth:
        """-log p(target) as a function of what is taken away from the image."""

        def value_and_slope(maps: Tensor) -> tuple[Tensor, Tensor]:
            value, slope = self.predictive.log_loss_and_slope(self.image - maps)
            return value, -slope

        return Smooth(lambda maps: self.predictive.log_loss(self.image - maps), value_and_slope)

    def box(self) -> tuple[Tensor, Tensor]:
        """Least and largest image."""
        low, high = self.bounds
        return torch.full_like(self.image, low), torch.full_like(self.image, high)

    def judged(self, found: Tensor, reached: Tensor) -> xr.Dataset:
        """Name the images and take every measure."""
        found = found.detach()
        log_probs = self.judge.log_probs(found)
        before = self.judge.log_probs(self.image).argmax(2) == self.target
        already, flipped = map(as_numpy, (before, ~before & (log_probs.argmax(2) == self.target)))
        at = self.target.view(1, -1, 1).expand(len(log_probs), -1, 1)
        probability = as_numpy(log_probs.gather(2, at)[:, :, 0].exp())
        others = (~already).sum(0).astype(float)  # draws that can flip
        with np.errstate(invalid="ignore"):  # none can
            share = flipped.sum(0) / others
            error = np.sqrt(share * (1 - share) / others)
        dims, draws = map_dims(self.image), (*SAMPLES, "case")
        index, change = self.judge_index, found - self.image
        variables: dict[str, Any] = {
            "image": (dims, as_numpy(self.image)),
            "counterfactual": (dims, as_numpy(found)),
            "change": (dims, as_numpy(change)),
            "flipped": (draws, flipped[index.values]),
            "already": (draws, already[index.values]),
            "probability": (draws, probability[index.values]),
        }
        figures = {
            "present": as_numpy(self.present),
            "target": as_numpy(self.target),
            "reached": as_numpy(reached),
            "flip_probability": share,
            "flip_probability_se": error,
            "log_odds": as_numpy(self.judge.log_odds(found)),
            **distances(change, self.image),
            **self._realism(found),
        }
        variables |= {name: ("case", values) for name, values in figures.items()}
        coords = {"case": self.ids, "chain": index["chain"], "draw": index["draw"]}
        result = xr.Dataset(variables, coords=coords)
        noise = float(is_high(change.shape[2:]).mean())
        return described(result).assign_attrs(white_noise_share=noise, num_draws=len(flipped))

    def _realism(self, found: Tensor) -> dict[str, np.ndarray]:
        if self.vae is None:
            return {}
        result: dict[str, np.ndarray] = {}
        pairs = {"realism": (found, self.target), "realism_of_image": (self.image, self.present)}
        for name, pair in pairs.items():
            value, error = log_density(*self.vae, *pair, particles=self.particles, seed=self.seed)
            result |= {name: as_numpy(value), f"{name}_se": as_numpy(error)}
        return result


def _checked(bounds: Bounds | None, image: Tensor) -> Bounds:
    if bounds is None:
        return -np.inf, np.inf
    low, high = bounds
    least, most = float(image.min()), float(image.max())
    if not low < high or least < low or most > high:
        raise ValueError(
            f"bounds must rise and hold the image, whose intensities run from {least:.4g} to "
            f"{most:.4g}, got {bounds}"
        )
    return bounds
