"""``functions``: one plain network per posterior draw, for gradients and explanations."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_med.checks import choice, reject
from ppl_med.data.geometry import plain
from ppl_med.inference.batches import check_seed
from ppl_med.inference.guides.ensemble import members_of
from ppl_med.inference.guides.kept_draws import taken_draws
from ppl_med.inference.prediction.posterior_sampler import PosteriorSampler
from ppl_med.likelihoods import site_logits
from ppl_med.programs import protocol
from ppl_med.programs.isolation import alone
from ppl_med.programs.parameters import move, set_mode
from ppl_med.programs.sites import Program, argument_names

SAME = 1e-4  # of two probabilities


class _Member:
    """One member's program; its sampler is made for the first image, which fixes the device."""

    def __init__(self, model: Program, guide: Program, seed: int, chain: int) -> None:
        self.pair, self.seed, self.chain = (model, guide), seed, chain
        self.argument = argument_names(model)[0]
        self.sampler: PosteriorSampler | None = None
        self.reads_site = False
        self.device: torch.device | None = None

    def prepare(self, image: Tensor) -> PosteriorSampler:
        """The sampler, with the programs on the image's device and in evaluation mode."""
        if self.sampler is None or self.device != image.device:
            move(self.pair, image.device)
            set_mode(self.pair, False)
            with torch.no_grad():
                example = {self.argument: image[:1].detach()}
                self.sampler = PosteriorSampler(*self.pair, example, self.seed, self.chain)
            self.device = image.device
        return self.sampler

    def prediction(self, trace: poutine.Trace, *, first: bool) -> Any:
        """What explanations differentiate; of classes, logits of what ``predict`` stores.

        They are those that the likelihood reads off the program's output; or those of the observed
        site itself, if the program returns something else, as is seen on ``first`` images.
        """
        nodes: dict[str, Any] = dict(trace.nodes)
        output = nodes["_RETURN"]["value"]
        sites = [site_logits(nodes[n]["fn"]) for n in self.sampler.observed if n in nodes]  # type: ignore[union-attr]
        of_site = sites[0] if len(sites) == 1 else None
        if isinstance(output, Tensor) and not self.reads_site:
            found = protocol.prediction(self.pair[0], output)
            self.reads_site = first and of_site is not None and not _same_probs(found, of_site)
            if not self.reads_site:
                return found
        return output if of_site is None else of_site


def _same_probs(logits: Tensor, expected: Tensor) -> bool:
    """Whether two logits (case, class, ...) are of the same probabilities."""
    if logits.shape != expected.shape:
        return False
    one, other = (x.detach().double() for x in (logits, expected))
    single = one.shape[1] == 1
    one, other = (x.sigmoid() if single else x.softmax(1) for x in (one, other))
    return torch.allclose(one, other, rtol=0.0, atol=SAME)


def _gradient_fault(trace: poutine.Trace, local: list[str], image: Tensor) -> str | None:
    """What is wrong with a gradient in the image: a draw that follows it but passes no gradient."""
    nodes: dict[str, Any] = dict(trace.nodes)
    for name in local:
        law, value = nodes[name]["fn"], nodes[name]["value"]
        if value.requires_grad:
            continue
        density = law.log_prob(value)
        if not density.requires_grad:
            continue
        slope = torch.autograd.grad(density.sum(), image, retain_graph=True, allow_unused=True)
        if slope[0] is not None:
            return (
                f"the latent {name!r} is drawn from a law that depends on the image, and its draws "
                "pass no gradient (classes do not): the gradient would leave out all that the "
                "image says by way of it; use method='occlusion', which needs no gradient, or a "
                "model of continuous states, such as GaussianDiffusion or RectifiedFlow"
            )
    return None


def _refuse_gradient(output: Tensor, fault: str) -> None:
    """Raise as soon as a gradient goes back through an output."""

    def refuse(gradient: Tensor) -> None:
        raise ValueError(fault)

    output.register_hook(refuse)


class Function:
    """One draw: image -> network output, without randomness and differentiable in the image.

    ``chain`` is the index of the member, ``draw`` that of the draw, as in ``predict`` with the
    seed.
    """

    def __init__(self, member: _Member, draw: int, finding: int | None = None) -> None:
        self.chain, self.draw = member.chain, draw
        self._member, self._finding = member, finding
        self._sampler: PosteriorSampler | None = None
        self._values: dict[str, Tensor] = {}
        self._fault: str | None = None
        self._fault_known = False

    @alone()
    def __call__(self, image: Tensor) -> Tensor:
        """What the program predicts for images (case, channel, row, col).

        Of classes, logits (case, class, ...) whose softmax is the probability that ``predict``
        gives, or one column of log-odds; else what the program returns.

        Raises:
            TypeError: If the program returns no tensor and has not one site of classes.
            ValueError: On the way back of a gradient that would be wrong: a latent of the case
                depends on the image and passes no gradient, as classes do not.
        """
        image = plain(image)
        sampler = self._member.prepare(image)
        first = sampler is not self._sampler
        if first:
            self._sampler, self._values = sampler, sampler.draw(self.draw)
        inputs = {self._member.argument: image}
        # One noise for all rows: the same image gives the same output wherever it stands.
        cases = np.zeros(len(image), dtype=int)
        trace = sampler.run(self._values, self.draw, inputs, cases)
        output = self._member.prediction(trace, first=first)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the model returned {type(output).__name__}; let it return the network's output "
                "(a tensor), which is what explanations differentiate"
            )
        if image.requires_grad and output.requires_grad:
            if not self._fault_known:
                self._fault = _gradient_fault(trace, sampler.local, image)
                self._fault_known = True
            if self._fault is not None:
                _refuse_gradient(output, self._fault)
        return output if self._finding is None else output[..., self._finding]


class Functions(Sequence[Function]):
    """A sequence of functions; the weights of one are drawn when it is first called."""

    def __init__(self, members: list[_Member], draws: int, finding: int | None) -> None:
        self._members, self._draws, self._finding = members, draws, finding

    def __len__(self) -> int:
        return len(self._members) * self._draws

    @overload
    def __getitem__(self, index: int) -> Function: ...
    @overload
    def __getitem__(self, index: slice) -> list[Function]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        chain, draw = divmod(index % len(self), self._draws)
        return Function(self._members[chain], draw, self._finding)


def functions(
    model: Program,
    guide: Program,
    *,
    draws: int | None = None,
    seed: int = 0,
    finding: str | None = None,
) -> Functions:
    """The posterior as a sequence of plain functions.

    With the same seed, function (chain, draw) has the weights of that draw in ``predict``. A latent
    code per case takes one noise a draw, the same for every image, so that each is a function.

    Args:
        model: The model.
        guide: Its guide, trained, or an ``Ensemble``.
        draws: Draws per chain, 32 by default; of chains that a sampler kept as in ``predict``.
        seed: Seed of all draws.
        finding: Name of one of several findings per case (``FindingsClassifier``), of which alone
            the functions then tell, as those of a classifier or regressor do.

    Returns:
        ``draws`` functions a chain; each has ``chain`` and ``draw``.

    Raises:
        ValueError: If the model has no such finding.
    """
    guide, draws = taken_draws(guide, draws)
    seed = check_seed(seed)
    names = list(protocol.coords(model).get("finding", ()))
    if finding is not None and not names:
        reject("finding", "left out: the model has no findings", finding)
    chosen = None if finding is None else names.index(choice("finding", finding, names))
    pairs = enumerate(members_of(model, guide))
    return Functions([_Member(*pair, seed, chain) for chain, pair in pairs], draws, chosen)
