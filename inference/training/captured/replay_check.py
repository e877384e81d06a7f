"""Whether a replay is the step that was recorded: with noise of its own, at the rates of now.

A graph repeats what is no tensor as it was when it was recorded. Noise that is repeated makes
another algorithm without any error: a deterministic net at one offset from the mean. So a captured
step is compared with the step itself before it is used. From the same parameters and the same state
of the generator, under several learning rates and KL weights, both must give

- the same terms of the loss, to a tenth of what they vary by between draws,
- the same gradients and the same moves of the parameters, but for the order of sums on a GPU,
- and must leave the generator in the same state.

All of it is undone.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_med.inference.training.captured.state_before import StateBefore, device_state
from ppl_med.inference.training.updates import Updates
from ppl_med.programs import rng

# Factors on the learning rate, and KL weights. Apart by more than the tolerances.
TRIALS = ((1.0, 1.0), (0.25, 0.0), (0.5, 3.0), (0.1, 0.3))
ROUNDING = {"float32": 1e-4, "bfloat16": 1e-2}  # of terms, relative
SHARE_OF_NOISE = 0.1
GRADIENT, MOVE = 0.05, 0.5  # of their norms


@dataclass
class Outcome:
    """What a step on trial gave.

    Attributes:
        terms: Of the loss, dims (term,).
        gradient: Of all parameters that keep it, dims (entry,).
        move: Of all parameters, dims (entry,).
        generator: State of the generator afterwards.
    """

    terms: Tensor
    gradient: Tensor
    move: Tensor
    generator: Tensor


def check_replays(
    updates: Updates,
    before: StateBefore,
    step: Callable[[], Tensor],
    replay: Callable[[], Tensor],
    gradients: Sequence[Tensor],
    device: torch.device,
    precision: str,
) -> None:
    """Compare replays with the step that was recorded; parameters and generators stay as they are.

    Args:
        updates: Whose step it is.
        before: Holds what steps move, as it is now.
        step: Makes the step on trial; its terms.
        replay: Makes it by a replay.
        gradients: Those that a replay writes to.
        device: Where they run.
        precision: That of the run.

    Raises:
        RuntimeError: If they differ.
    """
    start = state = rng.get_state(device)
    pairs: list[tuple[Outcome, Outcome]] = []
    try:
        for rate, weight in TRIALS:
            outcomes = []
            for run in (replay, step):
                rng.set_state(state, device)
                with updates.trial(rate, weight):
                    terms = run().double().cpu()
                    own = [p.grad for p in updates.parameters() if p.grad is not None]
                    slopes = _flat(gradients if run is replay else own)
                move = before.change(updates.parameters())
                outcomes.append(Outcome(terms, slopes, move, device_state(device)))
                before.restore()
            state = rng.get_state(device)
            pairs.append((outcomes[0], outcomes[1]))
    finally:
        before.restore()
        rng.set_state(start, device)
        updates.optimizer.zero_grad(set_to_none=True)
    fault = difference(pairs, ROUNDING[precision])
    if fault is not None:
        raise RuntimeError(
            f"capture=True: {fault}, so that what is trained would not be this posterior; pass "
            "capture=False"
        )


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    parts = [tensor.detach().reshape(-1) for tensor in tensors]
    return torch.cat(parts).double().cpu() if parts else torch.zeros(0, dtype=torch.float64)


def difference(pairs: Sequence[tuple[Outcome, Outcome]], rounding: float) -> str | None:
    """A sentence about what tells replays from steps; None where nothing does.

    Args:
        pairs: What a replay and a step gave, from the same start each.
        rounding: Relative, of the terms.
    """
    replayed = torch.stack([replay.terms for replay, _ in pairs])
    taken = torch.stack([step.terms for _, step in pairs])
    if not bool(taken.isfinite().all()):
        return None  # the training stops by itself, and says which term it was
    if any(not torch.equal(replay.generator, step.generator) for replay, step in pairs):
        return "replays of the captured step do not draw from the generator as the step does"
    spread = taken.amax(0) - taken.amin(0)
    allowed = SHARE_OF_NOISE * spread + rounding * taken.abs().amax(0)
    if bool(((replayed - taken).abs() > allowed).any()):
        frozen = bool((replayed.amax(0) - replayed.amin(0) <= allowed).all())
        noise = "repeat the same noise" if frozen else "give another loss than the step"
        return f"replays of the captured step {noise}"
    for replay, step in pairs:
        if _apart(replay.gradient, step.gradient, GRADIENT):
            return "replays of the captured step have other gradients than the step"
        if _apart(replay.move, step.move, MOVE):
            return "replays of the captured step move the parameters otherwise than the step"
    return None


def _apart(first: Tensor, second: Tensor, share: float) -> bool:
    if first.shape != second.shape:
        return True
    return bool((first - second).norm() > share * second.norm() + 1e-12)
