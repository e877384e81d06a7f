"""VAEs with a linear decoder and their exact posteriors: everything is a closed form."""

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


class LinearImageVAE(nn.Module):
    """z ~ Normal(0, I), image ~ Normal(weight z + offset, scale^2), columns orthogonal."""

    def __init__(self, shape: tuple[int, ...], latent: int, scale: float) -> None:
        super().__init__()
        self.shape, self.scale = shape, scale
        size = math.prod(shape)
        turned = torch.linalg.qr(torch.randn(size, latent).double())[0]
        self.weight = nn.Parameter(turned * torch.linspace(1.5, 3.0, latent))
        self.offset = nn.Parameter(torch.randn(size).double())

    def decode(self, z: Tensor) -> Tensor:
        flat = z.to(self.weight) @ self.weight.T + self.offset
        return flat.view(*z.shape[:-1], *self.shape)

    def sample(self, cases: int) -> Tensor:
        """Images of the model itself."""
        with torch.no_grad():
            mean = self.decode(torch.randn(cases, self.weight.shape[1]).double())
            return mean + self.scale * torch.randn_like(mean)

    def forward(self, image: Tensor, *, num_cases: int | None = None) -> None:
        with pyro.plate("case", num_cases or len(image), subsample=image):
            zero = image.new_zeros(len(image), self.weight.shape[1])
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1), infer=dims("latent"))
            mean = self.decode(z)
            pyro.deterministic("error", (image - mean).flatten(-3).norm(dim=-1), event_dim=0)
            law = dist.Normal(mean, self.scale).to_event(len(self.shape))
            pyro.sample("image", law, obs=image, infer=dims("channel", "row", "col", stored=False))

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (case, latent) and standard deviation (latent) of the code."""
        weight = self.weight.detach()
        variance = 1 / (1 + weight.square().sum(0) / self.scale**2)
        rest = image.flatten(1) - self.offset.detach()
        return variance * (rest @ weight) / self.scale**2, variance.sqrt()

    def log_density(self, image: Tensor) -> np.ndarray:
        """log p(image)."""
        weight, offset = self.weight.detach().numpy(), self.offset.detach().numpy()
        covariance = weight @ weight.T + self.scale**2 * np.eye(len(weight))
        return stats.multivariate_normal(offset, covariance).logpdf(image.flatten(1).numpy())


class DiagonalPosterior(nn.Module):
    """q(z | image), that of a ``LinearImageVAE``, its mean moved by an offset, its sd widened."""

    def __init__(self, model: LinearImageVAE, offset: float = 0.0, widen: float = 1.0) -> None:
        super().__init__()
        self.exact, self.offset, self.widen = [model], offset, widen  # whose parameters are its own

    def forward(self, image: Tensor, *, num_cases: int | None = None) -> None:
        loc, scale = self.exact[0].posterior(image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            law = dist.Normal(loc + self.offset, (self.widen * scale).expand_as(loc)).to_event(1)
            pyro.sample("z", law, infer=dims("latent"))
