"""Gaussian diffusion: masks as numbers -1 and +1 out of normal noise, the net's weights random.

Program, for a case with image x and T steps:

    weights             ~  prior                               one vector for all cases
    x_T                 ~  Normal(0, 1)                        every pixel
    x_(t-1) | x_t, x    ~  Normal(a_t m + b_t x_t, v_t)        t = T, ..., 2
    mask | x_1, x       ~  Categorical(softmax(c m))           c > 0 is learnt

where m = m(x, x_t, t; weights) is the net's mean of x_0, a_t and b_t make the posterior mean of the
noising process out of it, and the variance lies between the posterior's and the process's own,

    log v_t = u log beta_t + (1 - u) log (beta_t (1 - kept_(t-1)) / (1 - kept_t)),

u in (0, 1) a second output of the net. With ``variance="least"`` it is the smaller one, which costs
about a nat a pixel at 25 steps where a pixel's own law is a normal; with "most" the larger.

Sites and their dimensions: weights (weight); x<t> (case, channel, row, col), not stored; mask
(case, row, col) or (case, depth, row, col), integer in 0..K-1, or -1 where not
annotated. Training by one random step as in ``ppl_med.programs.noising.chain``.

The sharpness c belongs to the first step of the noising, at which a mask is nearly known. Where
``sampling_steps`` is less than T the last step starts higher up, and c makes too sure of the mask
there: rare classes are drawn too seldom. Of one pixel whose class has probability 0.2, by a net
that is exact, T = 100, masks have it with frequency

    sampling_steps       25      10       5       1
    hardening 1        0.20    0.19    0.19    0.00
    hardening 0.3      0.19    0.19    0.14    0.00
    hardening 0.1      0.18    0.09    0.02    0.00

``CategoricalDiffusion`` has the right frequency of a pixel at any number of steps.

With ``sampling="deterministic"`` masks are drawn without noise: from one x_T that all cases and
draws share, by x_s = sqrt(kept_s) m + sqrt(1 - kept_s) (x_t - sqrt(kept_t) m) / sqrt(1 - kept_t),
to the more probable class of every pixel. Then equal weights give equal masks: a baseline that
shows no disagreement of graders. What is trained, and its bound, stay those of the chain above,
which is no density of such masks; the tree says so (``training_loss``).

Guide: ``Guides(weight_guide, Noising(model.noising))``. Only a bound of the log-density of a mask
is known: ``predict`` stores that as ``evidence_bound/mask``, and no log-likelihood.

Input: ``image`` (case, channel, row, col) or (case, channel, depth, row, col), float, standardised.

References: Ho, Jain and Abbeel, NeurIPS 2020; learnt variance: Nichol and Dhariwal, ICML 2021
(eq. 15); targets: Salimans and Ho, ICLR 2022; without noise: Song, Meng and Ermon, "Denoising
diffusion implicit models", ICLR 2021 (eq. 12, sigma = 0). Departs from them: the loss is the bound
itself, not its reweighted form; the last step gives classes; the weights are random.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import pyro
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ppl_med.checks import choice
from ppl_med.models.denoising_chain import DenoisingChain, Net
from ppl_med.models.gaussian_steps import GaussianSteps, Target, Variance
from ppl_med.programs.noising import Form, GaussianNoise, Schedule, composed, noise_in
from ppl_med.weights import Prior, Where

Sampling = Literal["stochastic", "deterministic"]
SURE = 1e3  # logit of the one class that a mask without noise can have; exp(-SURE) is 0


class GaussianDiffusion(GaussianSteps, DenoisingChain):
    """The joint p(mask, x_1, ..., x_T, weights | image).

    Args:
        net: ``networks.DenoisingUNet`` with C noised channels and C outputs, 2 C where the variance
            is learnt, or any other net that is called as it is. C is 1 for two classes, else K.
        classes: Class names, the background first, K of them.
        num_steps: T.
        sampling_steps: Steps in which ``predict`` goes through the chain, evenly spaced; None for
            T. Fewer make another model of the same net, whose masks are less true, see above.
        target: What the net gives: "x", the mean of x_0, or "v", the velocity sqrt(kept) noise -
            sqrt(1 - kept) x_0, out of which the mean is made.
        variance: Of a reverse step: "learnt", or "least" or "most" of the two ends.
        schedule: See ``programs.noising.signal_kept``.
        hardening: See ``programs.noising.signal_kept``; the larger the regions, the smaller.
        form: "fast": training takes one random step of every case; "slow": the whole chain, T
            times the cost of the same bound.
        bound_steps: Steps of every case by which ``predict`` estimates the bound.
        prior: Prior over the random weights; He-scaled normals by default.
        where: Which parameters are random; see ``RandomWeights``.
        spatial_dims: 2 for images, 3 for volumes.
        sampling: "stochastic", or "deterministic": masks are drawn without noise, see above.

    Raises:
        ValueError: On numbers of steps that do not fit each other, or unknown choices; on a run, if
            the net's output does not fit.
    """

    noising: GaussianNoise

    def __init__(
        self,
        net: nn.Module,
        classes: Sequence[str],
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
        noising = GaussianNoise(
            len(classes), num_steps, schedule, hardening, form, bound_steps, spatial_dims
        )
        choice("variance", variance, get_args(Variance))
        outputs = noising.num_channels * (2 if variance == "learnt" else 1)
        super().__init__(net, classes, noising, outputs, sampling_steps, prior, where)
        self.target, self.variance = choice("target", target, get_args(Target)), variance
        self.log_sharpness = nn.Parameter(torch.zeros(()))
        self.sampling = choice("sampling", sampling, get_args(Sampling))
        if sampling == "deterministic":
            self.training_loss, self.no_density = "minus the bound of the chain with noise", True

    def reset_parameters(self) -> None:
        """Put the sharpness of the last step back to its start, as an ensemble does."""
        nn.init.zeros_(self.log_sharpness)

    def settings(self) -> str:
        """What a resumed run must share."""
        return f"GaussianDiffusion(target={self.target!r}, variance={self.variance!r})"

    def forward(
        self, image: Tensor, mask: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        """As in ``DenoisingChain``; without noise if ``sampling`` says so and no mask is given."""
        if mask is not None or self.sampling == "stochastic":
            return super().forward(image, mask, num_cases=num_cases)
        net = self.network.drawn(len(image))
        with pyro.plate("case", num_cases or len(image), subsample=image):
            return self._without_noise(net, self.context(net, image), image)

    def _without_noise(self, net: Net, context: Tensor, image: Tensor) -> Tensor:
        """Go from one start to the mask, the same way every time."""
        number, channels, device = len(image), self.noising.num_channels, image.device
        fixed = torch.randn(channels, *image.shape[2:], generator=torch.Generator().manual_seed(0))
        state = fixed.to(device).expand(number, *fixed.shape)
        for later, earlier in self.noising.grid(self.sampling_steps):
            output = self._output(net, context, state, torch.full((number,), later, device=device))
            at = self.noising.at(later, earlier)
            if earlier:
                mean = self.mean(output, state, at.later)
                state = composed(mean, noise_in(state, mean, at.later), at.earlier)
        likely = self.read_mask(output, state, at.later).argmax(1)
        logits = SURE * one_hot(likely, len(self.likelihood.classes)).to(output).movedim(-1, 1)
        self.likelihood(logits, None)
        return logits

    def read_mask(self, output: Tensor, state: Tensor, kept: Tensor) -> Tensor:
        """Logits of the mask: the mean of x_0 times a learnt sharpness."""
        mean = self.mean(output, state, kept) * self.log_sharpness.exp()
        axis = -1 - self.noising.spatial_dims
        return torch.cat([-mean, mean], axis) if self.noising.num_channels == 1 else mean
