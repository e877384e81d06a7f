"""CIMD: Gaussian diffusion of masks with a latent code per case, why graders of it disagree.

Program, for a case with image x and T steps:

    weights               ~  prior                                 one vector for all cases
    z | x                 ~  Normal(m(x), diag s(x)^2)             one code per case, the prior net
    x_T                   ~  Normal(0, 1)                          every pixel
    x_(t-1) | x_t, z, x   ~  Normal, as in ``GaussianDiffusion``   t = T, ..., 2
    mask | x_1, z, x      ~  Categorical, as there

z is drawn once a chain and is given to every step, joined to the features of the image. The bound
is joint: that of the chain given z, less KL(q(z | x, mask) || p(z | x)), in nats, weight 1.

The chain can tell graders apart without z, and does so the better the more steps it has; where the
KL falls to 0 ``fit`` warns, and the model is ``GaussianDiffusion``.

Sites and their dimensions: weights (weight); z (case, latent), no unit; x<t> (case, channel, row,
col), not stored; mask (case, row, col) or (case, depth, row, col), integer in 0..K-1.

Guide: ``Guides(weight_guide, ConditionalNormal(model.posterior_net(), observation="mask"),
Noising(model.noising))``. Only a bound of the log-density of a mask is known: ``predict`` stores
that as ``evidence_bound/mask``, and no log-likelihood.

Input: ``image`` (case, channel, row, col) or (case, channel, depth, row, col), float, standardised.

Reference: Rahman et al., "Ambiguous medical image segmentation using diffusion models", CVPR 2023,
and its released code. As there: a denoising diffusion of the mask whose reverse variance is learnt;
two Gaussian encoders of the Probabilistic U-Net over a code of 6 numbers, one of image and mask
(the "ambiguity modelling" net, here ``posterior_net()``), and one whose code the former's is
matched to by a KL (the "ambiguity controlling" net, here ``prior``). Departs from it:

- z reaches the mask. In the released code no step reads z: the KL, divided by 1000, is a penalty on
  the denoiser's output, and the diversity of samples is that of the noise.
- Both nets are trained. In the released code the optimizer holds the denoiser alone.
- The prior net sees the image alone: z is drawn before there is any output to see. The released
  one sees the image and the denoiser's guess of the noise.
- The loss is the bound itself, not a reweighted one with a KL of 1/1000; masks are -1 and +1, the
  last step gives classes, log-scales are clamped, the weights of the denoiser are random.
"""

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_med.axes import dims
from ppl_med.checks import reject, whole
from ppl_med.models.denoising_chain import Net
from ppl_med.models.gaussian_diffusion import GaussianDiffusion, Sampling, Target, Variance
from ppl_med.networks.encoder import ConvGaussian
from ppl_med.programs.noising import Form, Schedule
from ppl_med.weights import Prior, Where
from ppl_med.weights.call_cache import cached_call


class CollectiveInsightDiffusion(GaussianDiffusion):
    """The joint p(mask, x_1, ..., x_T, z, weights | image), CIMD.

    Args:
        net: ``networks.DenoisingUNet`` with ``num_code=latent_dim``, and with C noised channels and
            C outputs, 2 C where the variance is learnt; or any other net that is called as it is,
            whose features come with ``latent_dim`` channels more. C is 1 for two classes, else K.
        classes: Class names, the background first, K of them.
        in_channels: Image channels.
        latent_dim: Size of z.
        encoder_channels: Channels of the two encoders by scale, the finest first.
        num_convolutions: Convolutions per block of theirs.
        prior_components: Normals that the prior net mixes.
        num_steps: T.
        sampling_steps: Steps in which ``predict`` goes through the chain, evenly spaced; None for
            T. Fewer make another model of the same net, whose masks are less true; what that costs
            rare classes ``GaussianDiffusion`` says.
        target: As in ``GaussianDiffusion``.
        variance: As in ``GaussianDiffusion``.
        schedule: See ``programs.noising.signal_kept``.
        hardening: See ``programs.noising.signal_kept``; the larger the regions, the smaller.
        form: "fast": training takes one random step of every case; "slow": the whole chain, T
            times the cost of the same bound.
        bound_steps: Steps of every case by which ``predict`` estimates the bound.
        prior: Prior over the random weights, which are those of ``net``.
        where: Which of them are random; see ``RandomWeights``.
        spatial_dims: 2 for images, 3 for volumes.
        sampling: As in ``GaussianDiffusion``; without noise, what differs between masks is z's.

    Attributes:
        code_prior: The prior net, p(z | image); its weights are point estimates.

    Raises:
        ValueError: If ``net`` takes another size of z or number of image channels, on numbers of
            steps that do not fit each other, or unknown choices; on a run, if the net's output does
            not fit, or a mask to train on has pixels without a class.
    """

    def __init__(
        self,
        net: nn.Module,
        classes: Sequence[str],
        in_channels: int,
        latent_dim: int = 6,
        encoder_channels: Sequence[int] = (16, 32, 32),
        num_convolutions: int = 2,
        prior_components: int = 1,
        num_steps: int = 100,
        sampling_steps: int | None = None,
        target: Target = "x",
        variance: Variance = "learnt",
        schedule: Schedule = "cosine",
        hardening: float = 1.0,
        form: Form = "fast",
        bound_steps: int = 1,
        prior: Prior | None = None,
        where: Where = None,
        spatial_dims: int = 2,
        sampling: Sampling = "stochastic",
    ) -> None:
        self._check_net(net, whole("latent_dim", latent_dim), whole("in_channels", in_channels))
        super().__init__(
            net, classes, num_steps, sampling_steps, target, variance, schedule, hardening, form,
            bound_steps, prior, where, spatial_dims, sampling,
        )  # fmt: skip
        self.in_channels, self.latent_dim = in_channels, latent_dim
        self._encoder_sizes = (tuple(encoder_channels), num_convolutions, spatial_dims)
        self.code_prior = ConvGaussian(
            in_channels, latent_dim, 0, *self._encoder_sizes, components=prior_components
        )

    def posterior_net(self) -> ConvGaussian:
        """A new posterior net q(z | image, mask) of the prior net's sizes, for the guide."""
        number = len(self.likelihood.classes)
        return ConvGaussian(self.in_channels, self.latent_dim, number, *self._encoder_sizes)

    def settings(self) -> str:
        """What a resumed run must share."""
        return f"latent_dim={self.latent_dim}, {super().settings()}"

    def context(self, net: Net, image: Tensor) -> Tensor:
        """The features of the image and a drawn code, the same in every pixel."""
        features = net(image)
        z = pyro.sample("z", cached_call(self.code_prior, image), infer=dims("latent"))
        code = z.view(*z.shape, *[1] * (features.dim() - 2))
        return torch.cat([features, code.expand(-1, -1, *features.shape[2:]).to(features)], 1)

    @staticmethod
    def _check_net(net: Any, latent_dim: int, in_channels: int) -> None:
        """Raise where a net that tells its sizes takes others."""
        if (taken := getattr(net, "num_code", latent_dim)) != latent_dim:
            fix = f"build it with num_code={latent_dim}"
            reject("net", f"a net for a code of latent_dim={latent_dim}", f"num_code={taken}", fix)
        if (taken := getattr(net, "in_channels", in_channels)) != in_channels:
            reject("in_channels", f"that of the net, {taken}", in_channels)
