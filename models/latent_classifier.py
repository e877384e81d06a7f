"""Latent classifier: one latent code per case explains why readers of the same image disagree.

Program, for a case with image x:

    z | x         ~  Normal(m(x), diag s(x)^2)                 one code per case
    label | x, z  ~  Categorical(softmax(head(f(x), z)))

Sites and their dimensions: z (case, latent), no unit; label (case), integer in 0..K-1.

Input: ``image`` (case, channel, row, col), float, standardised.

Reference: Sohn, Lee and Yan, "Learning structured output representation using deep conditional
generative models", NeurIPS 2015. The smallest member of the family that the Probabilistic U-Net
(Kohl et al., NeurIPS 2018) belongs to. Guide: ``ConditionalNormal``.
"""

from collections.abc import Sequence

import pyro
import torch
from torch import Tensor, nn

from ppl_med.axes import dims
from ppl_med.likelihoods import Categorical
from ppl_med.networks.encoder import GaussianEncoder
from ppl_med.weights.call_cache import cached_call


class LatentClassifier(nn.Module):
    """The joint p(label, z | image).

    Args:
        in_channels: Image channels.
        classes: Class names.
        latent_dim: Size of z.
        width: Channels of the first convolution.
    """

    def __init__(
        self, in_channels: int, classes: Sequence[str], latent_dim: int = 2, width: int = 16
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.prior = GaussianEncoder(in_channels, latent_dim, width)
        self.head = nn.Sequential(
            nn.Linear(2 * width + latent_dim, 2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, len(classes)),
        )
        self.likelihood = Categorical(classes)
        self.coords = {"class": list(classes)}

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        """Run once, conditioned on ``label`` if given: logits of the drawn z, dims (case, class).

        Args:
            image: A batch of images, dims (case, channel, row, col).
            label: Observed classes, dims (case,); None draws them.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        features, prior = cached_call(self.features, image), cached_call(self.prior, image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            z = pyro.sample("z", prior, infer=dims("latent"))
            logits = self.head(torch.cat([features.expand(*z.shape[:-1], -1), z], dim=-1))
            self.likelihood(logits, label)
        return logits
