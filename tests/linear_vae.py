"""A conditional VAE with a linear decoder and its exact posterior: everything is a closed form."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from torch import Tensor, nn

from ppl_med.axes import dims


class LinearVAE(nn.Module):
    """z ~ Normal(0, I), class uniform, image ~ Normal(weight z + offset[class], scale^2)."""

    def __init__(self, shape: tuple[int, ...], num_classes: int, latent: int, scale: float) -> None:
        super().__init__()
        self.shape, self.num_classes, self.scale = shape, num_classes, scale
        size = math.prod(shape)
        self.weight = nn.Parameter(torch.randn(size, latent).double())
        self.offset = nn.Parameter(torch.randn(num_classes, size).double())

    def decode(self, z: Tensor, label: Tensor) -> Tensor:
        flat = z @ self.weight.T + self.offset[label]
        return flat.view(*z.shape[:-1], *self.shape)

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        with pyro.plate("case", num_cases or len(image), subsample=image):
            zero = image.new_zeros(len(image), self.weight.shape[1])
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1), infer=dims("latent"))
            chances = image.new_zeros(len(image), self.num_classes)
            label = pyro.sample("label", dist.Categorical(logits=chances), obs=label)
            law = dist.Normal(self.decode(z, label), self.scale).to_event(len(self.shape))
            pyro.factor("image", law.log_prob(image))

    def log_density(self, image: Tensor, label: Tensor) -> np.ndarray:
        """log p(image, label)."""
        weight, offset = self.weight.detach().numpy(), self.offset.detach().numpy()
        covariance = weight @ weight.T + self.scale**2 * np.eye(len(weight))
        flat = image.flatten(1).numpy()
        of_image = [
            stats.multivariate_normal.logpdf(x, offset[k], covariance)
            for x, k in zip(flat, label.tolist(), strict=True)
        ]
        return np.array(of_image) - np.log(self.num_classes)


class ExactPosterior(nn.Module):
    """q(z | image, class) = p(z | image, class), as guide and as its encoder."""

    def __init__(self, model: LinearVAE) -> None:
        super().__init__()
        self.model = model

    def encoder(self, image: Tensor, label: Tensor) -> dist.MultivariateNormal:
        weight, scale = self.model.weight.detach(), self.model.scale
        precision = torch.eye(weight.shape[1]).double() + weight.T @ weight / scale**2
        rest = image.flatten(1) - self.model.offset.detach()[label]
        loc = torch.linalg.solve(precision, weight.T @ rest.T / scale**2).T
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> None:
        if label is None:
            return
        with pyro.plate("case", num_cases or len(image), subsample=image):
            pyro.sample("z", self.encoder(image, label), infer=dims("latent"))
