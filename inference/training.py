"""The training loop behind ``fit``: steps, checkpoints, resuming, and what stops it."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ppl_med.inference import checkpoint as files
from ppl_med.inference.elbo import elbo_terms, total
from ppl_med.inference.heldout import heldout_nll
from ppl_med.inference.history import History
from ppl_med.inference.loader import Limits, Loader
from ppl_med.inference.programs import Program, is_local, sample_sites, select_arguments, to_device

LARGE_KL, COLLAPSED_KL = 1e3, 0.05
REFRESH_SECONDS = 0.5
VALIDATION_DRAWS = 8


@dataclass
class Plan:
    """Everything ``fit`` was asked to do; see its arguments."""

    loader: Loader
    epochs: int
    learning_rate: float
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None
    schedule: str | Callable[[float], float]
    kl_weight: float | Callable[[float], float]
    precision: str
    device: torch.device
    seed: int
    checkpoint: Path | None
    checkpoint_every: float
    validation: Any
    progress: bool
    limits: Limits

    def factor(self, done: float) -> float:
        """Factor on the learning rate at a finished fraction."""
        if callable(self.schedule):
            return float(self.schedule(done))
        return 0.5 * (1 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1.0

    def weight(self, done: float) -> float:
        """KL weight at a finished fraction."""
        weight = self.kl_weight(done) if callable(self.kl_weight) else self.kl_weight
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"kl_weight must be a finite number >= 0, got {weight!r}")
        return float(weight)

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the interrupted one."""
        return {
            "epochs": self.epochs,
            "num_cases": self.loader.num_cases,
            "num_batches": self.loader.num_batches,
            "learning_rate": self.learning_rate,
            "precision": self.precision,
            "seed": self.seed,
            "kl_weight": [round(self.weight(x), 12) for x in (0.0, 0.25, 0.5, 0.75, 1.0)],
            "schedule": [round(self.factor(x), 12) for x in (0.0, 0.25, 0.5, 0.75, 1.0)],
        }


@dataclass
class Position:
    """Where the next step stands."""

    member: int = 0
    epoch: int = 0
    batch: int = 0


class Trainer:
    """Trains the members one after the other.

    Args:
        plan: What to do.
        pairs: (model, guide) of each member.
    """

    def __init__(self, plan: Plan, pairs: list[tuple[Program, Program]]) -> None:
        self.plan, self.pairs = plan, pairs
        self.position = Position()
        self.histories = [History() for _ in pairs]
        self.pending: list[tuple[Tensor, float, int]] = []
        self.site_names: tuple[list[str], list[str]] = ([], [])
        self.optimizers: list[torch.optim.Optimizer] = []
        self.epoch_rng: dict[str, Tensor] | None = None
        self.saved_at = time.monotonic()

    # ---------------------------------------------------------------- before the first step

    def prepare(self, *, resume: bool) -> None:
        """Check everything that can be checked, build optimizers, load a checkpoint."""
        path = self.plan.checkpoint
        if path is not None and path.exists() and not resume:
            raise FileExistsError(
                f"checkpoint {path} exists; pass resume=True to go on with it, or another path"
            )
        first = next(iter(self.plan.loader.batches), None)
        if first is None:
            raise ValueError("batches is empty: it yields no batch")
        self.plan.limits.check(first, self.plan.loader.num_cases)
        for model, guide in self.pairs:
            self._rehearse(model, guide, first)
            parameters = trainable(model, guide)
            if not parameters:
                raise ValueError("neither model nor guide has a parameter to train")
            self.optimizers.append(self._optimizer(parameters))
        self._seed(0)
        if path is not None and resume and path.exists():
            self._restore(files.read(path))

    def _rehearse(self, model: Program, guide: Program, batch: dict[str, Any]) -> None:
        """Run once without learning: shape errors show, lazily made parameters come to be."""
        for program in (model, guide):
            if isinstance(program, nn.Module):
                program.to(self.plan.device).eval()
        values = to_device(select_arguments(model, batch), self.plan.device)
        with torch.no_grad():
            elbo_terms(model, guide, **values, num_cases=self.plan.loader.num_cases)
        for program in (model, guide):
            if isinstance(program, nn.Module):
                program.to(self.plan.device)

    def _optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if self.plan.optimizer is not None:
            return self.plan.optimizer(parameters)
        return torch.optim.Adam(parameters, lr=self.plan.learning_rate, fused=True)

    def _seed(self, member: int) -> None:
        torch.manual_seed(self.plan.seed + member)

    # ---------------------------------------------------------------- the loop

    def run(self) -> list[History]:
        """Train to the end.

        Returns:
            The history of each member.
        """
        plan, position = self.plan, self.position
        steps = plan.epochs * plan.loader.num_batches
        done = (position.member * plan.epochs + position.epoch) * plan.loader.num_batches
        with tqdm(
            total=steps * len(self.pairs),
            initial=done + position.batch,
            desc="fit",
            unit="step",
            disable=not plan.progress,
            mininterval=REFRESH_SECONDS,
        ) as bar:
            while position.member < len(self.pairs):
                self._train_member(bar)
                self._finish_member()
                position.member, position.epoch = position.member + 1, 0
                if position.member < len(self.pairs):
                    self._seed(position.member)
        self._save(force=True)
        return self.histories

    def _train_member(self, bar: Any) -> None:
        plan, position = self.plan, self.position
        model, guide = self.pairs[position.member]
        optimizer = self.optimizers[position.member]
        rates = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        while position.epoch < plan.epochs:
            _train_mode(model, guide)
            rng = self._start_epoch()
            seed = plan.seed + position.member
            for batch in plan.loader.iterate(position.epoch, position.batch, seed):
                if rng is not None:
                    _set_rng(rng, plan.device)
                    rng = None
                plan.limits.check(batch, plan.loader.num_cases)
                self._step(model, guide, optimizer, rates, batch)
                position.batch += 1
                self._after_step(bar)
            self._finish_epoch(model, guide)

    def _start_epoch(self) -> dict[str, Tensor] | None:
        """Remember the generator at the epoch's start; in mid-epoch, hand back the present one.

        A loader that draws its order from the global generator repeats it on resuming, because
        the generator is set to the epoch's start while it does.
        """
        if self.position.batch == 0 or self.epoch_rng is None:
            self.epoch_rng = _get_rng(self.plan.device)
            return None
        now = _get_rng(self.plan.device)
        if self.plan.loader.draws_its_order:
            _set_rng(self.epoch_rng, self.plan.device)
        return now

    def _step(
        self,
        model: Program,
        guide: Program,
        optimizer: torch.optim.Optimizer,
        rates: list[float],
        batch: dict[str, Any],
    ) -> None:
        plan, position = self.plan, self.position
        index = position.epoch * plan.loader.num_batches + position.batch
        done = index / (plan.epochs * plan.loader.num_batches)
        weight = plan.weight(done)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * plan.factor(done)
        values = to_device(select_arguments(model, batch), plan.device)
        enabled = plan.precision == "bfloat16"
        with torch.autocast(plan.device.type, torch.bfloat16, enabled=enabled):
            nll, kl = elbo_terms(model, guide, **values, num_cases=plan.loader.num_cases)
            loss = (total(nll) + weight * total(kl)) / plan.loader.num_cases
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        self.site_names = (list(nll), list(kl))
        terms = torch.stack([*nll.values(), *kl.values()]).detach() / plan.loader.num_cases
        self.pending.append((terms, weight, position.epoch))

    def _after_step(self, bar: Any) -> None:
        bar.update()
        if bar.disable is False and bar.last_print_t + REFRESH_SECONDS <= time.time():
            self._flush()
        elif len(self.pending) >= 1000:
            self._flush()
        history = self.histories[self.position.member]
        if history.nll and bar.disable is False:
            nll, kl = history.nll[-1], history.kl[-1]
            bar.set_postfix(
                elbo=f"{-(nll + kl):.4g}", nll=f"{nll:.4g}", kl=f"{kl:.4g}", refresh=False
            )
        self._save()

    def _flush(self) -> None:
        """Read the losses off the device and stop at the first that is not finite."""
        history = self.histories[self.position.member]
        if not self.pending:
            return
        rows = torch.stack([terms for terms, _, _ in self.pending]).double().cpu()
        num_observed = len(self.site_names[0])
        for row, (_, weight, epoch) in zip(rows, self.pending, strict=True):
            if not bool(row.isfinite().all()):
                self.pending.clear()
                self._stop(len(history.nll), row)
            history.nll.append(float(row[:num_observed].sum()))
            history.kl.append(float(row[num_observed:].sum()))
            history.kl_weight.append(weight)
            history.epoch.append(epoch)
        self.pending.clear()

    def _stop(self, step: int, row: Tensor) -> None:
        names = [f"negative log-likelihood of {n!r}" for n in self.site_names[0]]
        names += [f"KL of {n!r}" for n in self.site_names[1]]
        bad = [
            f"{name} is {float(value)}"
            for name, value in zip(names, row, strict=True)
            if not math.isfinite(value)
        ]
        path = self.plan.checkpoint
        kept = f"{path}" if path is not None and path.exists() else "none"
        raise FloatingPointError(
            f"the loss stopped being finite at step {step}: {'; '.join(bad)}. Last good "
            f"checkpoint: {kept}. Lower learning_rate, start with a smaller init_scale, or look "
            "for extreme pixels in the batch"
        )

    def _finish_epoch(self, model: Program, guide: Program) -> None:
        plan, position = self.plan, self.position
        if position.batch == 0:
            raise ValueError("batches yielded nothing in an epoch; it must be re-iterable")
        self._flush()
        if plan.validation is not None:
            _train_mode(model, guide, False)
            value = heldout_nll(
                model, guide, plan.validation, plan.device, VALIDATION_DRAWS, plan.seed
            )
            self.histories[position.member].validation_nll.append(value)
        position.epoch, position.batch = position.epoch + 1, 0
        self._save()

    def _finish_member(self) -> None:
        model, guide = self.pairs[self.position.member]
        _train_mode(model, guide, False)
        history = self.histories[self.position.member]
        if self.position.epoch == 0 or not history.kl:
            return
        last = history.kl[-self.plan.loader.num_batches :]
        kl = sum(last) / len(last)
        if kl > LARGE_KL:
            warnings.warn(
                f"the KL is {kl:.3g} nats per case, above {LARGE_KL:g}: the prior is far from the "
                "guide; start with a larger init_scale, a narrower prior or fewer random weights",
                stacklevel=4,
            )
        if kl < COLLAPSED_KL and self._has_only_local_latents(model):
            warnings.warn(
                f"posterior collapse: the latent code carries {kl:.3g} nats per case, below "
                f"{COLLAPSED_KL}; warm up the KL (kl_weight=warm_up()) or sum the likelihood over "
                "pixels",
                stacklevel=4,
            )

    def _has_only_local_latents(self, model: Program) -> bool:
        values = select_arguments(model, next(iter(self.plan.loader.batches)))
        with torch.no_grad():
            trace = pyro.poutine.trace(model).get_trace(**to_device(values, self.plan.device))
        latents = [s for s in sample_sites(trace).values() if not s["is_observed"]]
        return bool(latents) and all(is_local(site) for site in latents)

    # ---------------------------------------------------------------- checkpoints

    def _save(self, *, force: bool = False) -> None:
        path = self.plan.checkpoint
        if path is None or (
            not force and time.monotonic() - self.saved_at < self.plan.checkpoint_every
        ):
            return
        if self.position.member < len(self.pairs):
            self._flush()
        for model, guide in self.pairs:
            for parameter in trainable(model, guide):
                if not bool(parameter.isfinite().all()):
                    raise FloatingPointError(
                        "a parameter stopped being finite; the last good checkpoint is kept: "
                        f"{path if path.exists() else 'none'}. Lower learning_rate"
                    )
        files.write(
            path,
            {
                "fingerprints": [files.fingerprint(*pair) for pair in self.pairs],
                "states": [files.program_state(*pair) for pair in self.pairs],
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "histories": [asdict(history) for history in self.histories],
                "position": asdict(self.position),
                "identity": self.plan.identity(),
                "rng": _get_rng(self.plan.device),
                "epoch_rng": self.epoch_rng,
            },
        )
        self.saved_at = time.monotonic()

    def _restore(self, content: dict[str, Any]) -> None:
        path = self.plan.checkpoint
        if "optimizers" not in content or len(content["states"]) != len(self.pairs):
            raise ValueError(f"checkpoint {path} is not of this run: it holds other members")
        for saved, pair in zip(content["fingerprints"], self.pairs, strict=True):
            files.check_fingerprint(str(path), saved, files.fingerprint(*pair))
        for name, value in self.plan.identity().items():
            if content["identity"][name] != value:
                raise ValueError(
                    f"{name} is {value} but the checkpoint {path} was made with "
                    f"{content['identity'][name]}; resume with the same arguments"
                )
        for state, pair in zip(content["states"], self.pairs, strict=True):
            files.load_program_state(*pair, state)
        for state, optimizer in zip(content["optimizers"], self.optimizers, strict=True):
            optimizer.load_state_dict(state)
        self.histories = [History(**figures) for figures in content["histories"]]
        self.position = Position(**content["position"])
        self.epoch_rng = content["epoch_rng"]
        _set_rng(content["rng"], self.plan.device)


def trainable(model: Program, guide: Program) -> list[nn.Parameter]:
    """Parameters to train: of model, guide and Pyro's parameter store, each once."""
    found: dict[int, nn.Parameter] = {}
    for program in (model, guide):
        if isinstance(program, nn.Module):
            found |= {id(p): p for p in program.parameters() if p.requires_grad}
    if not (isinstance(model, nn.Module) and isinstance(guide, nn.Module)):
        store = pyro.get_param_store()
        for name in store.keys():
            value = store[name].unconstrained()
            found[id(value)] = value
    return list(found.values())


def _train_mode(model: Program, guide: Program, mode: bool = True) -> None:
    for program in (model, guide):
        if isinstance(program, nn.Module):
            program.train(mode)


def _get_rng(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_rng(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
