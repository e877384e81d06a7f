"""Diffusion of images: an image out of normal noise, step by step, the net's weights random.

Program, for a case and T steps:

    weights         ~  prior                    one vector for all cases
    x_T             ~  Normal(0, 1)             every intensity
    x_(t-1) | x_t   ~  Normal(a_t m + b_t x_t, v_t)        t = T, ..., 2
    image | x_1     ~  Normal(m, scale^2)       every intensity, one learnt scale

where m = m(x_t, t; weights) is the net's mean of the image, and a_t, b_t, v_t are those of
``GaussianDiffusion``.

Sites and their dimensions: weights (weight); x<t> (case, channel, row, col), not stored; image
(case, channel, row, col) or (case, channel, depth, row, col), in the unit of the intensities.
Training by one random step as in ``ppl_med.programs.noising.chain``.

Guide: ``Guides(weight_guide, Noising(model.noising, observation="image"))``.

Input: ``image``, float, standardised: noise of scale 1 must drown it. It is what is observed, so it
is never drawn: ``predict`` gives a bound of its log-density, ``evidence_bound/image`` (chain, draw,
case), in nats. The density has the intensities' unit in it; what ``ImageVAE`` says of comparing
such densities holds here. ``ppl_med.explain.diffusion_counterfactual`` goes through its chain.

Reference: Ho, Jain and Abbeel, "Denoising diffusion probabilistic models", NeurIPS 2020. Departs
from it: the loss is the bound itself; the last step has a learnt scale; the weights are random.
"""

from typing import get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_med.checks import choice, whole
from ppl_med.likelihoods.interface import observe, precision
from ppl_med.models.denoising_chain import Net, ReverseChain
from ppl_med.models.gaussian_steps import GaussianSteps, Target, Variance
from ppl_med.networks.encoder import LOG_SCALE_RANGE
from ppl_med.programs.noising import Form, NormalNoise, Schedule
from ppl_med.weights import Prior, Where


class ImageDiffusion(GaussianSteps, ReverseChain):
    """The joint p(image, x_1, ..., x_T, weights).

    Args:
        net: ``networks.DenoisingUNet(0, C, 2 C)`` for images of C channels, C outputs where the
            variance is not learnt; or any other net that is called as it is.
        in_channels: Image channels, C.
        num_steps: T.
        target: What the net gives: "x", the mean of the image, or "v", the velocity.
        variance: Of a reverse step; see ``GaussianDiffusion``.
        schedule: See ``programs.noising.signal_kept``.
        hardening: See ``programs.noising.signal_kept``.
        form: "fast": training takes one random step of every case; "slow": the whole chain, T
            times the cost of the same bound.
        bound_steps: Steps of every case by which ``predict`` estimates the bound.
        prior: Prior over the random weights; He-scaled normals by default.
        where: Which parameters are random; see ``RandomWeights``.
        spatial_dims: 2 for images, 3 for volumes.

    Raises:
        ValueError: On unknown choices or numbers out of range; on a run, if the images have other
            channels or axes, or the net's output does not fit.
    """

    noising: NormalNoise

    def __init__(
        self,
        net: nn.Module,
        in_channels: int,
        num_steps: int = 100,
        target: Target = "v",
        variance: Variance = "learnt",
        schedule: Schedule = "cosine",
        hardening: float = 1.0,
        form: Form = "fast",
        bound_steps: int = 1,
        prior: Prior | None = None,
        where: Where = None,
        spatial_dims: int = 2,
    ) -> None:
        whole("in_channels", in_channels)
        noising = NormalNoise(
            in_channels, num_steps, schedule, hardening, form, bound_steps, spatial_dims
        )
        choice("variance", variance, get_args(Variance))
        outputs = in_channels * (2 if variance == "learnt" else 1)
        super().__init__(net, noising, outputs, None, prior, where)
        self.in_channels = in_channels
        self.target, self.variance = choice("target", target, get_args(Target)), variance
        self.log_scale = nn.Parameter(self._least_log_scale())

    def reset_parameters(self) -> None:
        """Put the scale of the last step back to its start, as an ensemble does."""
        with torch.no_grad():
            self.log_scale.copy_(self._least_log_scale())

    def _least_log_scale(self) -> Tensor:
        """Of what noise the first step lays on an image, in the intensities' unit."""
        kept = self.noising.kept[1]
        return (0.5 * ((1 - kept) / kept).log()).float()

    def settings(self) -> str:
        """What a resumed run must share."""
        return f"ImageDiffusion(target={self.target!r}, variance={self.variance!r})"

    def context(self, net: Net, image: Tensor) -> Tensor:
        """Nothing: the net is told of the image by its noised state alone."""
        return net(image[:, :0])

    def observe(self, output: Tensor, state: Tensor, kept: Tensor, value: Tensor | None) -> Tensor:
        """Observe the image around the net's mean of it, which is returned."""
        mean = self.mean(output, state, kept)
        kind = precision(mean, training=self.training)
        scale = self.log_scale.clamp(*LOG_SCALE_RANGE).exp().to(kind)
        law = dist.Normal(mean.to(kind), scale)
        seen = None if value is None else value.to(kind)
        observe("image", law, self.noising.event, seen, stored=False)
        return mean

    def mean_image(self, net: Net, state: Tensor, step: int) -> Tensor:
        """The net's mean of the image given a state of the chain.

        Args:
            net: ``network`` under one draw of the weights, as ``network.drawn`` gives it.
            state: x_t, dims (case, channel, *space).
            step: t, from 1 to T.

        Returns:
            Dims as the state.
        """
        steps = torch.full((len(state),), step, device=state.device)
        output = self._output(net, self.context(net, state), state, steps)
        return self.mean(output, state, self.noising.kept[steps])

    def forward(self, image: Tensor, *, num_cases: int | None = None) -> Tensor:
        """Run the program once: the net's mean of the image, of the state drawn, dims as the image.

        Args:
            image: A batch of images, dims (case, channel, *space), which are observed.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        axes = self.noising.spatial_dims
        if image.dim() != 2 + axes or image.shape[1] != self.in_channels:
            raise ValueError(
                f"image has shape {tuple(image.shape)}, but the model takes (case, "
                f"{self.in_channels}, {', '.join(self.noising.space)})"
            )
        return self.run(image, image, num_cases)
