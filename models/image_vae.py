"""Variational autoencoder: a latent code explains the image.

Program:

    z          ~  Normal(0, I)                    one code per case
    image | z  ~  Normal(decode(z), scale^2)      every pixel, one learned scale

Sites and their dimensions: z (case, latent), no unit; image (case, channel, row, col), in the unit
of the intensities; at prediction also error (case), the length of image - decode(z), likewise.

Input: ``image`` (case, channel, row, col), float, standardised, of a fixed size. It is both what
the guide reads and what is observed, so it is never drawn: ``predict`` gives codes of the posterior
q(z | image), and with them

    log_likelihood/image   (chain, draw, case)             log p(image | z), nats
    log_prior/z            (chain, draw, case)             log p(z)
    log_guide/z            (chain, draw, case)             log q(z | image)
    posterior/z, error     (chain, draw, case[, latent])

from which ``ppl_med.analysis.ood`` has its scores of generative models. The mean of the likelihood
over these draws is no density of the image, and scores of predictions refuse it.

The density has the intensities' unit in it: compare images of one size and scale under one model,
nothing else. It says how well a code does, pixel by pixel, so images simpler than those of training
(smooth, dark) often have a *higher* density (Nalisnick et al., ICLR 2019, arXiv:1810.09136).

Reference: Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014, arXiv:1312.6114; one
learned scale for all pixels: Rybkin, Daniilidis and Levine, ICML 2021, arXiv:2006.13202.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_med.axes import dims
from ppl_med.checks import whole
from ppl_med.likelihoods.interface import observe, precision
from ppl_med.networks.encoder import LOG_SCALE_RANGE
from ppl_med.networks.image_code import CodeDecoder, CodeEncoder, check_size

EVENT = ("channel", "row", "col")


class ImageVAE(nn.Module):
    """The joint p(image, z).

    Its guide is ``ConditionalNormal(model.posterior_net(), observation="image")``.

    Args:
        in_channels: Image channels.
        size: Rows and columns of the images, multiples of 4.
        latent_dim: Size of z.
        width: Channels of the largest feature maps.
        store_images: Whether ``predict`` stores decoded images (``posterior/loc``) and draws of the
            image (``posterior_predictive/image``) of every draw, which takes three maps a draw.

    Raises:
        ValueError: If the size is not a multiple of 4, or a number is not positive; on a run, if
            the images have another size.
    """

    told_by_image = ("z",)

    def __init__(
        self,
        in_channels: int,
        size: tuple[int, int],
        latent_dim: int = 8,
        width: int = 16,
        *,
        store_images: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.latent_dim = in_channels, whole("latent_dim", latent_dim)
        self.store_images = store_images
        self._size, self._width = (size[0], size[1]), whole("width", width)
        self.decoder = CodeDecoder(in_channels, self._size, 0, latent_dim, width)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def reset_parameters(self) -> None:
        """Put the noise back to its start, as an ensemble does for every member."""
        nn.init.zeros_(self.log_scale)

    def posterior_net(self) -> CodeEncoder:
        """A new posterior net q(z | image), for the guide."""
        return CodeEncoder(self.in_channels, self._size, 0, self.latent_dim, self._width)

    def decode(self, z: Tensor) -> Tensor:
        """Mean images (..., case, channel, row, col) of codes (..., case, latent)."""
        images: Tensor = self.decoder(z)
        return images

    def forward(self, image: Tensor, *, num_cases: int | None = None) -> Tensor:
        """Run the program once: the decoded image of the drawn z, dims as the image.

        Args:
            image: A batch of images, dims (case, channel, row, col), which are observed.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        check_size(image, self.in_channels, self._size)
        loc = torch.zeros(len(image), self.latent_dim, device=image.device)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            standard = dist.Normal(loc, loc.new_ones(())).to_event(1)
            z = pyro.sample("z", standard, infer=dims("latent"))
            mean = self.decode(z)
            kind = precision(mean, training=self.training)
            mean, seen = mean.to(kind), image.to(kind)
            scale = self.log_scale.clamp(*LOG_SCALE_RANGE).exp().to(kind)
            if not self.training:
                pyro.deterministic("error", (seen - mean).flatten(-3).norm(dim=-1), event_dim=0)
            observe("image", dist.Normal(mean, scale), EVENT, seen, stored=self.store_images)
        return mean
