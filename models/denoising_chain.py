"""What models of the diffusion family share: a chain of states out of noise, as Pyro sites.

Program, for a case with image x and T steps:

    weights             ~  prior                       one vector for all cases, and for all steps
    x_T                 ~  noise
    x_(t-1) | x_t, x    ~  reverse(net(x, x_t, t))     t = T, ..., 2
    mask | x_1, x       ~  likelihood(net(x, x_1, 1))

One draw of the weights serves the whole chain: drawn anew at every step, they would average out,
and the masks of different draws of the weights would differ too little.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from ppl_med.axes import dims
from ppl_med.checks import reject
from ppl_med.likelihoods import Categorical
from ppl_med.programs.noising import Chain, Transition, counted
from ppl_med.weights import Prior, RandomWeights, Where

Net = Callable[..., Tensor]

NOISING = "Noising(model.noising)"


class ReverseChain(nn.Module, ABC):
    """Sites of a chain out of noise; a subclass says what a reverse step is, and what is observed.

    Args:
        net: ``networks.DenoisingUNet``, or another net with its two calls, see there.
        noising: The process whose steps are undone.
        num_outputs: Outputs of the net per pixel.
        sampling_steps: Steps in which the chain is gone through without a mask; None for all.
        prior: Prior over the random weights; He-scaled normals by default.
        where: Which parameters are random; see ``RandomWeights``.
    """

    evidence_bound = True

    def __init__(
        self,
        net: nn.Module,
        noising: Chain,
        num_outputs: int,
        sampling_steps: int | None,
        prior: Prior | None,
        where: Where,
    ) -> None:
        super().__init__()
        noising.grid(sampling_steps)
        check_called(net)
        self.network, self.noising = RandomWeights(net, prior, where), noising
        taught: Any = self.network.net
        if hasattr(taught, "set_signal"):
            taught.set_signal(noising.signal())
        self.num_outputs, self.sampling_steps = num_outputs, sampling_steps

    def drawn_by(self) -> dict[str, int]:
        """By how many steps ``predict`` draws a mask and estimates the bound."""
        steps = self.sampling_steps or self.noising.num_steps
        return {"sampling_steps": steps, "bound_steps": self.noising.bound_steps}

    @abstractmethod
    def shown(self, state: Tensor) -> Tensor:
        """A state (..., case, *event) as the net is given it, dims (..., case, channel, *space)."""

    @abstractmethod
    def reverse(self, output: Tensor, state: Tensor, at: Transition) -> Any:
        """The law of x_s given x_t and the net's output (..., case, output, *space)."""

    @abstractmethod
    def observe(self, output: Tensor, state: Tensor, kept: Tensor, value: Tensor | None) -> Tensor:
        """Observe x_0 given the last state, and return what the site was made of."""

    def context(self, net: Net, image: Tensor) -> Tensor:
        """What every step is given besides the state, dims (case, feature, *space).

        It is made inside the plate of cases, once a chain; a subclass may sample latents here.
        """
        return net(image)

    def run(self, image: Tensor, value: Tensor | None, num_cases: int | None) -> Tensor:
        """Run once, conditioned on what is observed if that is given."""
        slow = self.noising.form == "slow"
        net = self.network.drawn(len(image))
        with pyro.plate("case", num_cases or len(image), subsample=image):
            context = self.context(net, image)
            names = dims(*self.noising.event, stored=False, needs=NOISING)
            start = self._counted(self.noising.start(image), value)
            state = pyro.sample(f"x{self.noising.num_steps}", start, infer=names)
            if value is None or slow:
                return self._chain(net, context, state, value)
            return self._one_step(net, context, image, value)

    def _chain(self, net: Net, context: Tensor, state: Tensor, value: Tensor | None) -> Tensor:
        """Go from noise to x_0, step by step."""
        names = dims(*self.noising.event, stored=False, needs=NOISING)
        pairs = self.noising.grid(self.sampling_steps if value is None else None)
        for later, earlier in pairs:
            steps = (torch.full((len(context),), n, device=state.device) for n in (later, earlier))
            step, before = steps
            output = self._output(net, context, state, step)
            at = self.noising.at(step, before)
            if earlier:
                law = self._counted(self.reverse(output, state, at), value)
                state = pyro.sample(f"x{earlier}", law, infer=names)
        return self.observe(output, state, at.later, value)

    def _one_step(self, net: Net, context: Tensor, image: Tensor, value: Tensor) -> Tensor:
        """Go one random step back from a noised x_0, which stands for all steps."""
        process = self.noising
        names = dims(*process.event, stored=False, needs=NOISING)
        particles = process.num_particles(training=self.training)
        with pyro.plate("step", process.num_steps, subsample=torch.arange(particles), dim=-2):
            shape = (particles, len(context))
            with poutine.mask(mask=False):
                law = process.steps_of(shape, image.device)
                step = pyro.sample("at_step", law, infer=dims(stored=False, needs=NOISING))
                # From the prior only where no guide says what the state was.
                spread = process.start(image).expand(shape)
                noised = pyro.sample("noised", spread, infer=names)
            output = self._output(net, context, noised, step)
            unfinished: Any = step > 1
            with poutine.mask(mask=unfinished):
                later = step.clamp(min=2)
                law = self.reverse(output, noised, process.at(later, later - 1))
                pyro.sample("earlier", self._counted(law, value), infer=names)
            with poutine.mask(mask=~unfinished):
                found = self.observe(output, noised, process.kept[step], value)
            if self.training:
                self.assist(found, value)
        return found[0]

    def assist(self, found: Tensor, value: Tensor) -> None:
        """Add to the bound what helps to train it, inside the plates; by default nothing.

        Args:
            found: What ``observe`` gave at a random step of every case.
            value: x_0.
        """

    def _counted(self, law: Any, value: Tensor | None) -> Any:
        """The law of a state, in whose density the annotated pixels of a mask count."""
        return law if value is None else counted(law, self.noising.seen(value))

    def _output(self, net: Net, context: Tensor, state: Tensor, step: Tensor) -> Tensor:
        """The net's output (..., case, output, *space) for states (..., case, *event)."""
        part = step / self.noising.num_steps
        return denoised(net, context, self.shown(state), part, self.num_outputs)


class DenoisingChain(ReverseChain):
    """The joint p(mask, x_1, ..., x_T, weights | image).

    Args:
        net: ``networks.DenoisingUNet``, or another net with its two calls, see there.
        classes: Class names, the background first.
        noising: The process whose steps are undone.
        num_outputs: Outputs of the net per pixel.
        sampling_steps: Steps in which the chain is gone through without a mask; None for all.
        prior: Prior over the random weights; He-scaled normals by default.
        where: Which parameters are random; see ``RandomWeights``.
    """

    def __init__(
        self,
        net: nn.Module,
        classes: Sequence[str],
        noising: Chain,
        num_outputs: int,
        sampling_steps: int | None,
        prior: Prior | None,
        where: Where,
    ) -> None:
        super().__init__(net, noising, num_outputs, sampling_steps, prior, where)
        self.likelihood = Categorical(classes, noising.space, site="mask", partial=True)
        self.coords = {"class": list(classes)}

    @abstractmethod
    def read_mask(self, output: Tensor, state: Tensor, kept: Tensor) -> Tensor:
        """Logits of the mask, dims (..., case, class, *space), given the last state."""

    def observe(self, output: Tensor, state: Tensor, kept: Tensor, value: Tensor | None) -> Tensor:
        """Observe the mask, and return its logits."""
        logits = self.read_mask(output, state, kept)
        self.likelihood(logits, value)
        return logits

    def forward(
        self, image: Tensor, mask: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        """Run once, conditioned on ``mask`` if given: logits of the mask (case, class, *space).

        Args:
            image: A batch of images, dims (case, channel, *space).
            mask: One grader's classes, dims (case, *space), integers; None draws them.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        axes = len(self.noising.space)
        if image.dim() - 2 != axes:
            raise ValueError(
                f"image has shape {tuple(image.shape)}, {image.dim() - 2} axes of space, but the "
                f"chain is of masks along {', '.join(self.noising.space)}; build the model with "
                f"spatial_dims={image.dim() - 2}"
            )
        return self.run(image, mask, num_cases)


def check_called(net: nn.Module) -> None:
    """Raise where a net cannot be called as ``networks.DenoisingUNet`` is.

    Raises:
        ValueError: If it takes other arguments.
    """
    takes = inspect.signature(net.forward)
    try:
        takes.bind(None)
        takes.bind(features=None, noised=None, step=None)
    except TypeError:
        fix = "use networks.DenoisingUNet, or wrap the net in a module with these two calls"
        calls = "called as net(image) and as net(features=..., noised=..., step=...)"
        reject("net", calls, f"{type(net).__name__} with forward{takes}", fix)


def denoised(net: Net, context: Tensor, shown: Tensor, part: Tensor, num_outputs: int) -> Tensor:
    """The output of a denoising net, float32, dims (..., case, output, *space).

    Args:
        net: Under a draw of its weights.
        context: What every step is given besides the state, dims (case, feature, *space).
        shown: Noised masks, dims (..., case, channel, *space).
        part: Part of the way to noise that has been gone, 0 to 1, dims (..., case).
        num_outputs: Outputs that the net must have.

    Raises:
        ValueError: If the output has another shape.
    """
    lead = part.shape
    spread = context.expand(*lead, *context.shape[1:])
    cut = len(lead)
    output = net(
        features=spread.flatten(0, cut - 1),
        noised=shown.flatten(0, cut - 1),
        step=part.flatten(),
    )
    expected = (part.numel(), num_outputs, *shown.shape[cut + 1 :])
    if tuple(output.shape) != expected:
        raise ValueError(
            f"net gave an output of shape {tuple(output.shape)} but {expected} is needed; give "
            f"a net of {shown.shape[cut]} noised channels and {num_outputs} outputs"
        )
    return output.float().view(*lead, *output.shape[1:])
