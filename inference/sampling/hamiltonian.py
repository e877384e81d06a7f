"""Hamiltonian Monte Carlo on all cases: Pyro's HMC and NUTS, stepped one transition at a time.

    energy(w, r)  =  U(w) + r' M^-1 r / 2,      U(w) = -log p(w, observations)        nats

Step size (dual averaging) and mass matrix (Welford, in Stan's windows) are adapted in the warm-up
and fixed afterwards.

References: Neal, "MCMC using Hamiltonian dynamics", 2011; Hoffman and Gelman, "The No-U-Turn
sampler", JMLR 15, 2014; Betancourt, "A conceptual introduction to HMC", 2017 (multinomial
trajectories, divergences). Izmailov et al., "What are Bayesian neural network posteriors really
like?", ICML 2021, on nets.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pyro.infer import mcmc
from torch import Tensor

from ppl_med.checks import choice, inside, positive, reject, whole
from ppl_med.inference.sampling.contract import Chain, Kernel, Stats
from ppl_med.inference.sampling.target import Target

SITE = "position"
FEWEST = 20  # steps of a warm-up, from which Stan's windows are laid
Mass = Literal["diagonal", "dense", "identity"]


class _Recorded:
    """Notes the kinetic energy of the momentum that a transition starts with."""

    kinetic = 0.0
    max_steps = 1

    def _sample_r(self, name: str) -> Any:
        momentum, unscaled = super()._sample_r(name)  # type: ignore[misc]
        self.kinetic = float(self._kinetic_energy(unscaled))  # type: ignore[attr-defined]
        return momentum, unscaled


class _RecordedHMC(_Recorded, mcmc.HMC):
    @property
    def num_steps(self) -> int:
        return min(self.max_steps, max(1, int(self.trajectory_length / self.step_size)))


class _RecordedNUTS(_Recorded, mcmc.NUTS):
    pass


class _HamiltonianChain(Chain):
    """A chain of one of Pyro's kernels.

    Args:
        kernel: Built with a potential, not set up.
        count: Gradients of the potential so far.
        position: Where to start.
        warm_up: Steps that adapt.
        trees: Whether trajectories are trees.
    """

    def __init__(
        self, kernel: Any, count: list[int], position: Tensor, warm_up: int, *, trees: bool
    ) -> None:
        self.kernel, self.trees, self._count = kernel, trees, count
        kernel.initial_params = {SITE: position.detach().clone()}
        kernel.setup(warm_up)
        self.position = position

    def step(self) -> Stats:
        """One transition."""
        kernel, warm_up = self.kernel, self.kernel._warmup_steps
        taken, mean = kernel._t + 1, kernel._mean_accept_prob
        before, divergences = float(kernel._potential_energy_last), len(kernel._divergences)
        self._count[0] = 0
        step_size = float(kernel.step_size)
        self.position = kernel.sample({SITE: self.position})[SITE].detach()
        number = taken - warm_up if taken > warm_up else taken
        if number == 1:
            mean = 0.0
        accepted = mean + number * (kernel._mean_accept_prob - mean)  # it keeps the mean alone
        leaps = self._count[0]
        found: Stats = {
            "acceptance_rate": min(max(accepted, 0.0), 1.0),
            "step_size": step_size,
            "diverging": len(kernel._divergences) > divergences,
            "n_steps": leaps,
            "energy": before + kernel.kinetic,
            "lp": -float(kernel._potential_energy_last),
        }
        if self.trees:
            found["tree_depth"] = max(leaps, 1).bit_length()
        return found

    def state(self) -> dict[str, Any]:
        """All that Pyro's kernel carries from one transition to the next."""
        kernel, adapter = self.kernel, self.kernel._adapter
        found: dict[str, Any] = {
            "t": kernel._t,
            "accepted": kernel._accept_cnt,
            "mean": kernel._mean_accept_prob,
            "divergences": list(kernel._divergences),
            "position": kernel._z_last[SITE].detach(),
            "potential": kernel._potential_energy_last.detach(),
            "gradient": kernel._z_grads_last[SITE].detach(),
            "step_size": adapter.step_size,
            "mass": adapter.mass_matrix_adapter.inverse_mass_matrix[(SITE,)],
        }
        if adapter.adapt_step_size:
            found["averaging"] = dict(vars(adapter._step_size_adapt_scheme))
        if not adapter._adaptation_disabled:
            found["window"] = adapter._current_window
        if adapter.adapt_mass_matrix:
            scheme = adapter.mass_matrix_adapter._adapt_scheme[(SITE,)]
            found["welford"] = dict(vars(scheme))
        return found

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put everything back."""
        kernel, adapter = self.kernel, self.kernel._adapter
        like = self.position
        kernel._t, kernel._accept_cnt = state["t"], state["accepted"]
        kernel._mean_accept_prob = state["mean"]
        kernel._divergences = list(state["divergences"])
        self.position = state["position"].to(like)
        kernel._cache(
            {SITE: self.position},
            state["potential"].to(like),
            {SITE: state["gradient"].to(like)},
        )
        adapter.step_size = state["step_size"]
        adapter.mass_matrix_adapter.inverse_mass_matrix = {(SITE,): state["mass"].to(like)}
        if "averaging" in state:
            vars(adapter._step_size_adapt_scheme).update(state["averaging"])
        if "window" in state:
            adapter._current_window = state["window"]
        if "welford" in state:
            scheme = adapter.mass_matrix_adapter._adapt_scheme[(SITE,)]
            for name, value in state["welford"].items():
                setattr(scheme, name, value.to(like) if isinstance(value, Tensor) else value)


class _Hamiltonian(Kernel):
    """Settings that HMC and NUTS share."""

    kind: type[Any]
    trees = False
    step_size: float | None
    mass: str
    target_accept: float

    def _check(self, step_size: float | None, target_accept: float, mass: str) -> None:
        self.step_size = None if step_size is None else positive("step_size", step_size)
        self.target_accept = inside("target_accept", target_accept)
        self.mass = choice("mass", mass, ("diagonal", "dense", "identity"))

    def _options(self) -> dict[str, Any]:
        raise NotImplementedError

    def check(self, warm_up: int) -> None:
        """Raise where nothing would choose the step size."""
        if self.step_size is None and warm_up < FEWEST:
            fix = "or give the kernel a step_size"
            reject("warm_up", f"at least {FEWEST}, in which the step size is adapted", warm_up, fix)

    def start(self, target: Target, position: Tensor, warm_up: int, seed: int) -> Chain:
        """A chain; see ``Kernel``."""
        count = [0]

        def potential(latents: Mapping[str, Tensor]) -> Tensor:
            count[0] += 1
            return target.fast_potential(latents[SITE])

        kernel = self.kind(
            potential_fn=potential,
            step_size=0.1 if self.step_size is None else self.step_size,
            adapt_step_size=self.step_size is None and warm_up > 0,
            adapt_mass_matrix=self.mass != "identity" and warm_up > 0,
            full_mass=self.mass == "dense",
            target_accept_prob=self.target_accept,
            **self._options(),
        )
        kernel.max_steps = getattr(self, "max_steps", 1)
        return _HamiltonianChain(kernel, count, position, warm_up, trees=self.trees)


class HMC(_Hamiltonian):
    """Hamiltonian Monte Carlo with trajectories of one length.

    Args:
        trajectory_length: Length of a trajectory, in units in which the adapted mass matrix makes
            the posterior's standard deviations 1. A quarter of a period of a normal posterior by
            default, whose end does not depend on its start.
        step_size: Of the leapfrog integrator, likewise; None adapts it in the warm-up.
        target_accept: Mean acceptance that the step size is adapted to.
        mass: ``"diagonal"``, ``"dense"`` (the whole covariance: for up to some hundred weights) or
            ``"identity"``, which adapts none.
        max_steps: Most leapfrog steps of a trajectory, each a gradient over all cases; shorter
            trajectories are the price of a small step size.

    Raises:
        ValueError: On a setting that is out of its range.
    """

    kind = _RecordedHMC

    def __init__(
        self,
        trajectory_length: float = math.pi / 2,
        *,
        step_size: float | None = None,
        target_accept: float = 0.8,
        mass: Mass = "diagonal",
        max_steps: int = 1000,
    ) -> None:
        self.trajectory_length = positive("trajectory_length", trajectory_length)
        self.max_steps = whole("max_steps", max_steps)
        self._check(step_size, target_accept, mass)

    def _options(self) -> dict[str, Any]:
        return {"trajectory_length": self.trajectory_length}


class NUTS(_Hamiltonian):
    """The No-U-Turn sampler, multinomial: HMC that finds the length of its trajectories.

    Args:
        max_tree_depth: Most doublings of a trajectory, 2^depth - 1 gradients over all cases.
        step_size: Of the leapfrog integrator; None adapts it in the warm-up.
        target_accept: Mean acceptance that the step size is adapted to; raise it (0.9, 0.99) where
            trajectories diverge.
        mass: As in ``HMC``.

    Raises:
        ValueError: On a setting that is out of its range.
    """

    kind = _RecordedNUTS
    trees = True

    def __init__(
        self,
        max_tree_depth: int = 10,
        *,
        step_size: float | None = None,
        target_accept: float = 0.8,
        mass: Mass = "diagonal",
    ) -> None:
        self.max_tree_depth = whole("max_tree_depth", max_tree_depth, most=20)
        self._check(step_size, target_accept, mass)

    def _options(self) -> dict[str, Any]:
        return {"max_tree_depth": self.max_tree_depth}
