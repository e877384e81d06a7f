"""The loop of ``sample``: chains one after the other, with checkpoints."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_med.inference import checkpoint as files
from ppl_med.inference.data_digest import DATA, same_data
from ppl_med.inference.prediction.case_noise import derive_seed
from ppl_med.inference.sampling.contract import Chain, Kernel, Stats
from ppl_med.inference.sampling.target import Target
from ppl_med.inference.training.interrupts import Interrupts, told_interrupt
from ppl_med.programs import rng

REFRESH_SECONDS = 0.5
SHOWN = ("acceptance_rate", "step_size")


class Sampler:
    """Runs chains of a kernel one after the other, each from a seed of its own.

    Args:
        kernel: The kernel.
        target: What is sampled.
        draws, warm_up, chains, thin, seed: As in ``sample``.
        start: From the index of a chain to where it starts, under the seed of the chain.
        checkpoint: File for the state of the run.
        checkpoint_every: Seconds between checkpoints.
        identity: What a resumed run must share.
        progress: Whether to show a bar.

    Attributes:
        kept: Of each chain so far, its draws (draw, weight).
        stats: Of each chain so far, what was told of every draw.
    """

    def __init__(
        self,
        kernel: Kernel,
        target: Target,
        *,
        draws: int,
        warm_up: int,
        chains: int,
        thin: int,
        seed: int,
        start: Callable[[int], Tensor],
        checkpoint: Path | None,
        checkpoint_every: float,
        identity: Mapping[str, Any],
        progress: bool,
    ) -> None:
        self.kernel, self.target, self.start = kernel, target, start
        self.draws, self.warm_up, self.chains, self.thin = draws, warm_up, chains, thin
        self.seed, self.progress = seed, progress
        self.path, self.every, self.identity = checkpoint, checkpoint_every, dict(identity)
        self.kept: list[list[Tensor]] = []
        self.stats: list[list[Stats]] = []
        self.steps = warm_up + kernel.num_steps(draws, thin)
        self.index = self.step = 0
        self.chain: Chain | None = None
        self._resumed: Mapping[str, Any] | None = None
        self._saved_at = time.monotonic()

    def run(self) -> None:
        """Sample to the end."""
        total, begun = self.steps * self.chains, self.steps * self.index + self.step
        if self.index == self.chains:
            return
        with (
            Interrupts() as interrupts,
            tqdm(
                total=total,
                initial=begun,
                desc="sample",
                unit="step",
                disable=not self.progress,
                mininterval=REFRESH_SECONDS,
            ) as bar,
        ):
            while self.index < self.chains:
                chain = self._begin()
                while self.step < self.steps:
                    self._take(chain, bar)
                    self._save()
                    if interrupts.asked:
                        self._stop()
                self.index, self.step, self.chain = self.index + 1, 0, None
        self._save(force=True)

    def _begin(self) -> Chain:
        """The present chain, new or as the checkpoint left it."""
        rng.seed_all(derive_seed(self.seed, self.index))
        position = self.start(self.index)
        # Chains differ in the order of their batches, too.
        self.chain = self.kernel.start(self.target, position, self.warm_up, self.seed + self.index)
        if self._resumed is None:
            self.kept.append([])
            self.stats.append([])
        else:
            self.chain.restore(self._resumed["chain"])
            own_states = zip(self.target.generators, self._resumed["loader"], strict=True)
            for generator, state in own_states:
                generator.set_state(state)
            rng.set_state(self._resumed["generators"], self.target.device)
            self._resumed = None
        return self.chain

    def _take(self, chain: Chain, bar: Any) -> None:
        try:
            told = chain.step()
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error} at step {self.step} of chain {self.index}. {self._last_good()} Choose a "
                "smaller step_size, or look for extreme values in the batches"
            ) from None
        after = self.step - self.warm_up
        self.step += 1
        wanted = len(self.kept[-1]) < self.draws
        if after >= 0 and wanted and self.kernel.keeps(after, self.thin):
            self.kept[-1].append(chain.position.detach().cpu().clone())
            self.stats[-1].append(told)
        bar.update()
        if not bar.disable:
            shown = {name: f"{told[name]:.3g}" for name in SHOWN if name in told}
            stage = "warm-up" if self.step <= self.warm_up else "draws"
            bar.set_postfix(shown | {"chain": self.index, "stage": stage}, refresh=False)

    # ---------------------------------------------------------------- checkpoints

    def _last_good(self) -> str:
        there = self.path is not None and self.path.exists()
        return f"Last good checkpoint: {self.path if there else 'none'}."

    def _stop(self) -> None:
        """After Ctrl-C: save, and end with how to go on."""
        done = f"sample was interrupted after {self.step} steps of chain {self.index}"
        if self.path is None:
            raise told_interrupt(
                f"{done}, and nothing is kept; with checkpoint=<path> an interrupted run goes on."
            )
        self._save(force=True)
        raise told_interrupt(
            f"{done}; the draws so far are in the checkpoint {self.path}. To go on, make the same "
            "call with resume=True."
        )

    def _save(self, *, force: bool = False) -> None:
        if self.path is None:
            return
        if not force and time.monotonic() - self._saved_at < self.every:
            return
        files.write(self.path, self._content())
        self._saved_at = time.monotonic()

    def _content(self) -> dict[str, Any]:
        chain = None
        if self.chain is not None:
            chain = {
                "chain": self.chain.state(),
                "generators": rng.get_state(self.target.device),
                "loader": [g.get_state() for g in self.target.generators],
            }
        return {
            "fingerprints": [],
            "states": [],  # which ``load`` reads: this file is no trained guide
            "identity": self.identity,
            "index": self.index,
            "step": self.step,
            "kept": [torch.stack(one) if one else None for one in self.kept],
            "stats": self.stats,
            "current": chain,
        }

    def resume(self, content: Mapping[str, Any]) -> None:
        """Set a new sampler to where a checkpoint stands.

        Raises:
            ValueError: The checkpoint is of something else, or of other arguments.
        """
        if "kept" not in content:
            raise ValueError(
                f"checkpoint {self.path} was not written by sample; give sample another path"
            )
        saved, own = dict(content["identity"]), dict(self.identity)
        if not same_data(saved.pop(DATA, None), own.pop(DATA, None)):
            raise ValueError(
                f"batches hold other data than those that the checkpoint {self.path} was made "
                "with; resume with the same data, or give another checkpoint"
            )
        for name, value in own.items():
            if saved.get(name) != value:
                raise ValueError(
                    f"{name} is {value} but the checkpoint {self.path} was made with "
                    f"{saved.get(name)}; resume with the same arguments"
                )
        self.index, self.step = content["index"], content["step"]
        self.kept = [[] if one is None else list(one) for one in content["kept"]]
        self.stats = [list(one) for one in content["stats"]]
        self._resumed = content["current"]
