"""Rectified flow: masks along straight lines out of noise, the weights of the net random.

Program, for a case with image x and mask x_0, numbers -1 and +1 (``programs.noising.signed``):

    weights     ~  prior                                    one vector for all cases
    start x_1   ~  Normal(0, 1), or a low-rank normal       every pixel
    prediction:  dx_u / du = v(x_u, u, x; weights)          from u = 1 to 0, in a few steps
                 mask ~ Categorical(p),  p(+1) = (1 + m) / 2,  m = x_u - u v at the last step
    training:    place ~ Uniform(0, 1), u = time(place);  x_u = (1 - u) x_0 + u x_1
                 loss 1/2 |v(x_u, u, x) - (x_1 - x_0)|^2, or 1/2 |m - x_0|^2 with target "x"

The last step of the path ends at m, the mean of the mask given x_u if the net is right. As the mask
is -1 or +1, that mean is its probability and no sharpness has to be learnt; pixels are independent
given x_u. Means beyond -1 and 1, which a net can give, are cut.

The loss is summed over pixels and averaged over the time; at every time both targets have the same
best net, and "x" weighs the squared error of the velocity by u^2. It is no log-density: what is
learnt of the weights is a generalised posterior (see ``likelihoods.class_loss``), whose scale is
that of the loss, and ``predict`` stores no log-likelihood.

The low-rank start is the law of a stochastic segmentation network, here of the numbers -1 and +1:

    x_1 = m(x) + F(x) z + d(x)^(1/2) noise,    z, noise ~ Normal(0, I)

It is trained together with the flow, by its own log-density of the mask, which is known in closed
form; the flow gets its draws without their gradient, for the loss of the flow alone is least where
the start has no spread. So the start learns the mean and the covariance of the masks, and the flow
what a normal law lacks.

Sites and their dimensions: weights (weight); start (case, channel, row, col), or z (case, latent)
and noise (case, channel, row, col), which follow the prior under every guide; place (case), with a
mask; mask (case, row, col) or (case, depth, row, col), integer in 0..K-1, or -1 where not
annotated: such a pixel is noise at every time, and has no loss. ``path_deviation`` (case) is
stored: mean over steps and pixels of (v - (x_1 - m))^2, 0 where the path is straight.

Few steps: the paths of a trained flow bend, and a step that is too long cuts the bend. A second
flow that is trained on the pairs which the first one makes (reflow) has straighter paths: with
``store_start=True`` the first one's tree holds ``path_start``, and a batch with such a
``paired_start`` beside the mask at its end trains the second one on the line between the two.

Guide: one over the weights, such as ``PointEstimate(model, use_prior=False)``.

Input: ``image`` (case, channel, row, col) or (case, channel, depth, row, col), float, standardised.

References: Liu, Gong and Liu, "Flow straight and fast", ICLR 2023 (rectified flow); Lipman et al.,
"Flow matching for generative modeling", ICLR 2023; times: Esser et al., ICML 2024 (sections 3.1 and
5.3.2); low-rank start: Monteiro et al., NeurIPS 2020. Departs from them: the last step gives
classes; the low-rank law is of the mask, not of logits; the weights are random.
"""

import itertools
from collections.abc import Sequence
from typing import Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_med.axes import SPACE, dims
from ppl_med.checks import choice, positive, whole
from ppl_med.likelihoods import Categorical, check_tensor
from ppl_med.likelihoods.interface import note
from ppl_med.models.denoising_chain import Net, check_called, denoised
from ppl_med.programs.low_rank_field import LowRankField
from ppl_med.programs.noising import PlacesOfBatch, over_space, signed
from ppl_med.weights import Prior, RandomWeights, Where

Target = Literal["x", "v"]
Times = Literal["uniform", "logit_normal"]
Solver = Literal["euler", "heun"]

LEAST_PROBABILITY = 1e-4  # of a class at the end of a path
LEAST_VARIANCE = 0.01  # of a pixel of the low-rank start, whose density would else have no bound


class MaskByLoss(Categorical):
    """The mask of a model that is trained by a loss and has no density of it."""

    def __init__(self, classes: Sequence[str], event: Sequence[str], loss: str) -> None:
        super().__init__(classes, event, site="mask", partial=True)
        self.training_loss = loss


class RectifiedFlow(nn.Module):
    """The joint p(mask, start, weights | image).

    Args:
        net: ``networks.DenoisingUNet`` with C noised channels and C outputs, or any other net that
            is called as it is. C is 1 for two classes, else K.
        classes: Class names, the background first, K of them.
        start: None for standard normals; a net from images to (2 + rank) * C maps for the low-rank
            law: first the means, then the log-variances, then the columns of the factor.
        rank: Columns of the factor of the low-rank law.
        sampling_steps: Steps of a path. It may be changed after training.
        solver: "euler", one pass of the net a step, or "heun", two but for the last.
        target: What the net gives: "x", the mean of x_0, or "v", the velocity.
        times: Law of the place on the path in training: "uniform", or "logit_normal", which
            prefers the middle.
        hardening: b: the times of training and of the steps are u = p / (p + b (1 - p)) of evenly
            spread places p, as if masks were numbers -b and b. Less is for larger regions.
        prior: Prior over the random weights; He-scaled normals by default.
        where: Which parameters of ``net`` are random; see ``RandomWeights``.
        spatial_dims: 2 for images, 3 for volumes.
        store_start: Whether ``predict`` keeps ``path_start`` (case, channel, *space), the starts.

    Raises:
        ValueError: On unknown choices or numbers out of range; on a run, if an output does not fit.
    """

    loss_alone = True
    training_inputs = ("paired_start",)

    def __init__(
        self,
        net: nn.Module,
        classes: Sequence[str],
        start: nn.Module | None = None,
        rank: int = 10,
        sampling_steps: int = 25,
        solver: Solver = "euler",
        target: Target = "x",
        times: Times = "uniform",
        hardening: float = 1.0,
        prior: Prior | None = None,
        where: Where = None,
        spatial_dims: int = 2,
        *,
        store_start: bool = False,
    ) -> None:
        super().__init__()
        check_called(net)
        self.spatial_dims = choice("spatial_dims", spatial_dims, SPACE)
        self.rank, self.store_start = whole("rank", rank, 0), store_start
        self.sampling_steps = whole("sampling_steps", sampling_steps)
        self.solver = choice("solver", solver, get_args(Solver))
        self.target = choice("target", target, get_args(Target))
        self.times = choice("times", times, get_args(Times))
        self.hardening = positive("hardening", hardening)
        loss = f"squared error of {'the velocity' if target == 'v' else 'the mask on its path'}"
        self.likelihood = MaskByLoss(classes, SPACE[spatial_dims], loss)
        self.num_channels = 1 if len(classes) == 2 else len(classes)
        self.network = RandomWeights(net, prior, where)
        self.start_network = (
            None if start is None else RandomWeights(start, prior, site="start_weights")
        )
        self.coords = {"class": list(classes)}

    def settings(self) -> str:
        """What a resumed run must share."""
        return (
            f"RectifiedFlow(target={self.target!r}, times={self.times!r}, "
            f"hardening={self.hardening:g})"
        )

    def forward(
        self,
        image: Tensor,
        mask: Tensor | None = None,
        paired_start: Tensor | None = None,
        *,
        num_cases: int | None = None,
    ) -> Tensor:
        """Run once, by the loss of ``mask`` if given: logits of the mask (case, class, *space).

        Args:
            image: A batch of images, dims (case, channel, *space).
            mask: One grader's classes, dims (case, *space), integers; None draws them.
            paired_start: Where the path that ends at the mask started, dims (case, channel,
                *space); None draws starts that do not depend on the mask.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.

        Raises:
            ValueError: If an output or a start has the wrong shape, or starts are given to a model
                that draws them from a low-rank law, which would not learn.
        """
        net = self.network.drawn(len(image))
        law = self._low_rank_law(image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            context = net(image)
            if mask is None:
                return self._draw(net, context, self._start(image, law))
            if paired_start is not None:
                self._check_pairs(image, paired_start)
                return self._one_time(net, context, paired_start, mask)
            start = self._start(image, law)
            if law is not None:
                pyro.factor("start_law", law.log_prob(self._signed(mask), self._seen(mask)))
            return self._one_time(net, context, start.detach(), mask)

    def time(self, place: Tensor) -> Tensor:
        """Times u of places on the path, 0 to 1: the mask, and noise."""
        return place / (place + self.hardening * (1 - place))

    def grid(self) -> list[tuple[float, float]]:
        """Pairs of a later time and an earlier one, from 1 down to 0."""
        places = torch.linspace(1, 0, self.sampling_steps + 1, dtype=torch.float64)
        return list(itertools.pairwise(self.time(places).tolist()))

    def velocity(self, output: Tensor, state: Tensor, time: Tensor) -> Tensor:
        """The velocity that an output of the net stands for, dims as the state; the time not 0."""
        return output if self.target == "v" else (state - output) / over_space(time, state)

    def read_mask(self, mean: Tensor) -> Tensor:
        """Log-probabilities (case, class, *space) of the mask whose numbers have this mean."""
        if self.num_channels == 1:
            mean = torch.cat([-mean, mean], 1)
        probs = ((1 + mean) / 2).clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        return (probs / probs.sum(1, keepdim=True)).log()

    def _low_rank_law(self, image: Tensor) -> LowRankField | None:
        if self.start_network is None:
            return None
        output = self.start_network(image)
        check_tensor(output)
        expected = (len(image), (2 + self.rank) * self.num_channels, *image.shape[2:])
        if tuple(output.shape) != expected:
            raise ValueError(
                f"start gave an output of shape {tuple(output.shape)} but {expected} is needed: "
                f"(2 + rank) * {self.num_channels} maps of the size of the image, with rank "
                f"{self.rank}"
            )
        return LowRankField(output.float(), self.rank, self.num_channels, LEAST_VARIANCE)

    def _start(self, image: Tensor, law: LowRankField | None) -> Tensor:
        names = ("channel", *self.likelihood.event)
        if law is not None:
            return law.draw(names, proposed=False)
        shape = (len(image), self.num_channels, *image.shape[2:])
        zeros = torch.zeros(shape, device=image.device)
        standard = dist.Normal(zeros, zeros.new_ones(())).to_event(len(names))
        start: Tensor = pyro.sample(
            "start", standard, infer=dims(*names, stored=False, proposed=False)
        )
        return start

    def _one_time(self, net: Net, context: Tensor, start: Tensor, mask: Tensor) -> Tensor:
        """Go back from one random place on the line between mask and noise."""
        spread = PlacesOfBatch((len(start),), start.device)
        place = pyro.sample("place", spread, infer=dims(stored=False, proposed=False))
        if self.times == "logit_normal":
            place = torch.special.ndtri(place).sigmoid()
        time = self.time(place)
        share = over_space(time, start)
        line = (1 - share) * self._signed(mask) + share * start
        state = torch.where(self._seen(mask), line, start)
        output = denoised(net, context, state, time, self.num_channels)
        mean = output if self.target == "x" else state - share * output

        def loss(logits: Tensor, label: Tensor, seen: Tensor) -> Tensor:
            signs = self._signed(label)
            wanted = signs if self.target == "x" else start - signs
            return 0.5 * (output - wanted).square().sum(-1 - self.spatial_dims)

        logits = self.read_mask(mean)
        self.likelihood.observe_by_loss(logits, mask, loss)
        return logits

    def _draw(self, net: Net, context: Tensor, start: Tensor) -> Tensor:
        """Draw the mask at the end of the path."""
        mean, deviation = self.follow(net, context, start)
        note("path_deviation", deviation)
        if self.store_start:
            note("path_start", start, "channel", *self.likelihood.event)
        logits = self.read_mask(mean)
        self.likelihood(logits, None)
        return logits

    def follow(self, net: Net, context: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Follow the path of every case from its start to the mean of its mask.

        Args:
            net: Under a draw of its weights.
            context: What the net says of the images, dims (case, feature, *space).
            start: x_1, dims (case, channel, *space).

        Returns:
            The end, dims as the start, and ``path_deviation``, dims (case,).
        """

        def at(state: Tensor, time: float) -> Tensor:
            times = torch.full((len(state),), time, device=state.device)
            output = denoised(net, context, state, times, self.num_channels)
            return self.velocity(output, state, times)

        state, velocities = start, []
        for later, earlier in self.grid():
            step = earlier - later
            velocity = at(state, later)
            if self.solver == "heun" and earlier > 0:
                velocity = (velocity + at(state + step * velocity, earlier)) / 2
            state = state + step * velocity
            velocities.append((velocity, -step))
        straight, deviation = start - state, torch.zeros(len(start), device=start.device)
        for velocity, length in velocities:
            deviation = deviation + length * (velocity - straight).square().flatten(1).mean(1)
        return state, deviation

    def _signed(self, mask: Tensor) -> Tensor:
        return signed(mask, len(self.likelihood.classes), self.spatial_dims)

    def _seen(self, mask: Tensor) -> Tensor:
        return (mask >= 0).unsqueeze(-1 - self.spatial_dims)

    def _check_pairs(self, image: Tensor, start: Tensor) -> None:
        expected = (len(image), self.num_channels, *image.shape[2:])
        if tuple(start.shape) != expected:
            raise ValueError(
                f"paired_start has shape {tuple(start.shape)}, but {expected} is needed, as "
                "path_start of a tree has it"
            )
        if self.start_network is not None:
            raise ValueError(
                "paired_start was given to a flow with a net for its start, which would not learn; "
                "build the second flow with start=None, or train it without pairs"
            )
