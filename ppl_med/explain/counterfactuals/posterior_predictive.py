"""The posterior predictive probability of a class and its slope, one draw at a time.

    p(k | x) = 1/S sum over draws s of softmax(f_s(x))_k

Its gradient is a sum over draws whose weights need the mean over all of them, so every slope takes
two passes; in memory is the graph of one draw, whatever their number.
"""

import math
from collections.abc import Callable, Sequence

import torch
import xarray as xr
from torch import Tensor

from ppl_med.explain.attribution.score import Score, class_logits
from ppl_med.explain.function_checks import Function, check_functions

Slope = tuple[Tensor, Tensor]
Weights = Callable[[Tensor], Tensor]


def check_draws(functions: Sequence[Function], image: Tensor, target: Tensor) -> xr.DataArray:
    """Try every function, and return the position of each, (chain, draw).

    Raises a ValueError where the output is not (case, class), lacks the target or carries no
    gradient.
    """
    score = Score("logit", target)

    def check(name: str, _: Function, output: object) -> None:
        score.check(name, output)
        assert isinstance(output, Tensor)
        if not (output.is_floating_point() and output.requires_grad):
            raise ValueError(
                f"{name} returned logits that carry no gradient, along which a counterfactual is "
                "searched; return logits, not classes, and remove torch.no_grad or detach in it"
            )

    return check_functions(functions, image, torch.zeros_like(image), check)


class PosteriorPredictive:
    """Class probabilities of draws, all held with their weights, and slopes of functions of them.

    ``target`` is the class asked for, dims (case,).
    """

    def __init__(self, functions: Sequence[Function], target: Tensor) -> None:
        self.functions, self.target = list(functions), target

    @torch.no_grad()
    def log_probs(self, image: Tensor) -> Tensor:
        """Log-probabilities of every draw, dims (draw, case, class), float64."""
        return torch.stack([self._log_probs(function, image) for function in self.functions])

    @torch.no_grad()
    def log_odds(self, image: Tensor) -> Tensor:
        """``log p(target) - log p(strongest other)``, dims (case,), in nats."""
        of_target, rest = self._split(self._mean(image))
        return of_target - rest.amax(1)

    def log_odds_and_slope(self, image: Tensor) -> Slope:
        """The same, and its slope in the image."""
        of_target, rest = self._split(self._mean(image))
        best, other = rest.max(1)

        def weights(draw: Tensor) -> Tensor:
            mine = (self._split(draw)[0] - of_target).exp()
            return mine - (draw.gather(1, other[:, None])[:, 0] - best).exp()

        return of_target - best, self._slope(image, weights)

    @torch.no_grad()
    def log_loss(self, image: Tensor) -> Tensor:
        """``-log p(target)``, dims (case,), in nats."""
        return -self._split(self._mean(image))[0]

    def log_loss_and_slope(self, image: Tensor) -> Slope:
        """The same, and its slope in the image."""
        of_target, _ = self._split(self._mean(image))

        def weights(draw: Tensor) -> Tensor:
            return -(self._split(draw)[0] - of_target).exp()

        return -of_target, self._slope(image, weights)

    def _log_probs(self, function: Function, image: Tensor) -> Tensor:
        return class_logits(function(image.clone())).double().log_softmax(1)

    def _mean(self, image: Tensor) -> Tensor:
        return self.log_probs(image).logsumexp(0) - math.log(len(self.functions))

    def _split(self, log_probs: Tensor) -> Slope:
        """Log-probability of the target, (case,), and of all classes, the target's at -inf."""
        at = self.target[:, None]
        return log_probs.gather(1, at)[:, 0], log_probs.scatter(1, at, -math.inf)

    def _slope(self, image: Tensor, weights: Weights) -> Tensor:
        total = torch.zeros_like(image)
        for function in self.functions:
            with torch.enable_grad():
                point = image.detach().clone().requires_grad_()
                value = weights(self._log_probs(function, point)).sum() / len(self.functions)
                total += torch.autograd.grad(value, point)[0]
        return total
