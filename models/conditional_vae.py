"""Conditional VAE: a latent code and the class explain the image.

Program, for a case with image x:

    z             ~  Normal(0, I)                                  one code per case
    label         ~  Categorical(class_probs)                      independent of the code
    image | z, y  ~  Normal(decode(z, label), scale^2)             every pixel, one learned scale

Sites and their dimensions: z (case, latent), no unit; label (case), integer in 0..K-1.

Input: ``image`` (case, channel, row, col), float, standardised, of a fixed size.

The image is what a data set always has, so it has no site that could be drawn: its density stands
at the site of the label. Where labels are given, that is log p(label) + log p(image | z, label), so
the ELBO is that of image and label together, in nats with the intensities' unit in it; where they
are not, it is p(label | image, z) by Bayes' rule, under a code from the prior. That is not
p(label | image), for which see ``ppl_med.explain.counterfactuals.class_probabilities``: `predict`
marks it and analyses refuse it. Codes of an image come from the guide,
``ConditionalNormal(model.posterior_net())``.

The code is independent of the class, so what images of all classes share (place, size, brightness)
needs to be told once: ``decode(z, other)`` changes the class, and mostly that alone. The likelihood
does not demand it; two classes with little in common may use one code for different things.

Reference: Kingma, Rezende, Mohamed and Welling, "Semi-supervised learning with deep generative
models", NeurIPS 2014 (M2, with all labels given); Sohn, Lee and Yan, NeurIPS 2015.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppl_med.axes import dims
from ppl_med.checks import different_names, reject
from ppl_med.likelihoods.interface import observe, precision
from ppl_med.networks.encoder import LOG_SCALE_RANGE
from ppl_med.networks.image_code import CodeDecoder, CodeEncoder, check_size


class _ImageAndLabel(TorchDistribution):
    """The density of an image and its label, as a function of the label (case,): (..., case)."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.nonnegative_integer

    def __init__(self, log_density: Callable[[Tensor], Tensor], shape: torch.Size) -> None:
        self.log_density = log_density
        super().__init__(shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_ImageAndLabel":
        """The same with more batch dims."""
        return _ImageAndLabel(self.log_density, torch.Size(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats."""
        return self.log_density(value).expand(self.batch_shape)


class ConditionalVAE(nn.Module):
    """The joint p(image, label, z).

    Args:
        in_channels: Image channels.
        classes: Class names.
        size: Rows and columns of the images, multiples of 4.
        latent_dim: Size of z.
        width: Channels of the largest feature maps.
        class_probs: Prior probabilities of the classes; equal ones by default.

    Raises:
        ValueError: If there are fewer than two classes or two share a name, if the size is not a
            multiple of 4, or the probabilities are not positive, or not one per class; on a run, if
            the images have another size.
    """

    log_class_probs: Tensor
    told_by_image = ("z",)

    def __init__(
        self,
        in_channels: int,
        classes: Sequence[str],
        size: tuple[int, int],
        latent_dim: int = 8,
        width: int = 16,
        class_probs: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        different_names("classes", classes, least=2)
        probs = torch.tensor([1.0] * len(classes) if class_probs is None else [*class_probs])
        if probs.shape != (len(classes),) or not bool((probs > 0).all()):
            reject("class_probs", f"{len(classes)} positive numbers", class_probs)
        self.in_channels, self.latent_dim = in_channels, latent_dim
        self._size, self._width = (size[0], size[1]), width
        self.decoder = CodeDecoder(in_channels, self._size, len(classes), latent_dim, width)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("log_class_probs", (probs / probs.sum()).log())
        self.coords = {"class": list(classes)}

    def reset_parameters(self) -> None:
        """Put the noise back to its start, as an ensemble does for every member."""
        nn.init.zeros_(self.log_scale)

    def posterior_net(self) -> CodeEncoder:
        """A new posterior net q(z | image, label), for the guide."""
        num_classes = len(self.log_class_probs)
        return CodeEncoder(self.in_channels, self._size, num_classes, self.latent_dim, self._width)

    def decode(self, z: Tensor, label: Tensor) -> Tensor:
        """Mean images (..., case, channel, row, col) of codes, each as the class of its label.

        Args:
            z: Codes, dims (..., case, latent).
            label: Classes, dims (case,), or as the codes have.
        """
        images: Tensor = self.decoder(z, label)
        return images

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor | None:
        """Run the program once, conditioned on ``label`` if it is given.

        Args:
            image: A batch of images, dims (case, channel, row, col).
            label: Observed classes, dims (case,); None draws them.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.

        Returns:
            Without a label ``log p(image, label | z)`` of every class, dims (case, class): logits
            of the class. Else None.
        """
        check_size(image, self.in_channels, self._size)
        loc = torch.zeros(len(image), self.latent_dim, device=image.device)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            standard = dist.Normal(loc, loc.new_ones(())).to_event(1)
            z = pyro.sample("z", standard, infer=dims("latent"))
            if label is None:
                classes = torch.arange(len(self.log_class_probs), device=image.device)
                joint = torch.stack([self._log_joint(image, z, k) for k in classes], dim=-1)
                observe("label", dist.Categorical(logits=joint), (), None)
                return joint
            density = _ImageAndLabel(partial(self._log_joint, image, z), z.shape[:-1])
            observe("label", density, (), label)
            return None

    def _log_joint(self, image: Tensor, z: Tensor, label: Tensor) -> Tensor:
        """``log p(image, label | z)`` in nats, dims (..., case)."""
        mean = self.decode(z, label)
        kind = precision(mean, training=self.training)
        scale = self.log_scale.clamp(*LOG_SCALE_RANGE).exp().to(kind)
        density = dist.Normal(mean.to(kind), scale).to_event(3)
        return density.log_prob(image.to(kind)) + self.log_class_probs.take(label.long()).to(kind)
