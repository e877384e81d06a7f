"""Stochastic variational inference: ``fit`` maximises the ELBO it names.

    loss = (NLL + kl_weight * KL) / num_cases       in nats per case, kl_weight 1 by default

One draw of the latents a step; closed-form KL where one is registered. Over an epoch every case
weighs the same, whatever the order and the sizes of the batches, so that the mean of an epoch's
steps is the ELBO of all cases (``epoch_visits``). Nothing in a step waits for the device: losses
are read when the progress bar is redrawn, at the end of an epoch and before a checkpoint.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
import xarray as xr

from ppl_med.checks import reject
from ppl_med.inference import process_group
from ppl_med.inference.adapted import adapted, warn_of_kept_workers
from ppl_med.inference.batches import as_loader, batch_spec
from ppl_med.inference.guides.ensemble import Ensemble, members_of
from ppl_med.inference.training.callbacks import Callback
from ppl_med.inference.training.history import join_histories
from ppl_med.inference.training.member import Member
from ppl_med.inference.training.natural_gradient import VariationalOnlineNewton
from ppl_med.inference.training.objectives import Elbo, Geco, ImportanceWeighted
from ppl_med.inference.training.precision import Precision, warn_if_slow
from ppl_med.inference.training.preparation import prepare
from ppl_med.inference.training.ranks.members_apart import join_members
from ppl_med.inference.training.schedules import Schedule
from ppl_med.inference.training.selection import EarlyStopping, Plateau
from ppl_med.inference.training.settings import Settings
from ppl_med.programs import protocol, rng
from ppl_med.programs.isolation import alone, torch_defaults
from ppl_med.programs.sites import Program
from ppl_med.storage.locks import locked


@alone()
@torch_defaults()
def fit(
    model: Program,
    guide: Program,
    batches: Any,
    *,
    num_cases: int | None = None,
    keys: Mapping[str, str] | None = None,
    epochs: int = 1,
    learning_rate: float | Mapping[str, float] = 1e-3,
    optimizer: Callable[[list[Any]], torch.optim.Optimizer] | VariationalOnlineNewton | None = None,
    schedule: Literal["constant", "cosine", "one-cycle", "plateau"]
    | Schedule
    | Plateau = "constant",
    rate_warm_up: float = 0.0,
    clip_norm: float | None = None,
    accumulate: int = 1,
    average: float | None = None,
    kl_weight: float | Schedule = 1.0,
    objective: Elbo | ImportanceWeighted | Geco | None = None,
    precision: Precision = "float32",
    capture: bool = False,
    compile_nets: bool = False,
    device: str | torch.device | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 60.0,
    resume: bool = False,
    validation: Any = None,
    keep: Literal["last", "best"] = "last",
    stopping: EarlyStopping | None = None,
    callbacks: Sequence[Callback | Callable[[xr.Dataset], Any]] = (),
    progress: bool = True,
) -> xr.Dataset:
    """Train a guide (and what a model has of deterministic parameters) in place.

    The two, and networks in the closure of a plain function, are in training mode meanwhile and are
    left in evaluation mode. Random number generators of the process are left as they were. Pyro's
    handlers belong to the process, so a call in another thread waits until this one is done.

    Processes of ``torchrun``, or of an initialised ``torch.distributed``, train together: all call
    with the same arguments, each takes its part of every batch and draws noise of its own, and all
    end with the same parameters. The members of an ``Ensemble`` are trained apart instead.

    Args:
        model: A Pyro program ``model(image, label=None, *, num_cases=None)``.
        guide: A guide with the same signature, an ``Ensemble``, or a stock AutoGuide of Pyro.
        batches: Re-iterable with a length, of dicts whose keys are the model's arguments:
            ``data.Batches``, a ``DataLoader`` of torch or MONAI, or a list; or a data set of dicts
            itself, in shuffled batches of one case (``data.DatasetBatches`` has more). Crops of one
            volume share its weight. Other keys (``id``) are ignored.
            Weights of a ``WeightedRandomSampler`` are divided out again: they decide how often a
            case is seen, not how much it counts. Batches of your own state ``cases_per_epoch``
            where it is neither ``num_cases`` nor a number of full batches. Random numbers of a
            ``DataLoader`` come from the seed; with ``persistent_workers`` its workers keep
            generators of their own, which no checkpoint holds.
        num_cases: Size of the data set, volumes and not their crops; read off ``batches`` where
            that is possible.
        keys: Names in the batches -> names of the model's arguments, such as
            ``{"label": "mask"}``; for ``validation``, too.
        epochs: Passes over the data; 0 where a guide such as ``Laplace`` only needs what comes
            after training.
        learning_rate: Of the default optimizer, Adam. Or rates by pattern of names, of which the
            first that fits counts and 0 freezes: ``{"*layer4*": 1e-4, "*.fc.*": 1e-3, "*": 0}``.
            Parameters are named as in the model, random weights too
            (``network.net.layer4.0.conv1.weight``), those of a guide besides ``guide.<name>``.
        optimizer: From a list of parameters to a torch optimizer, in place of Adam; where there are
            several rates, from a list of groups (dicts with ``params`` and ``lr``). Or
            ``VariationalOnlineNewton()``: natural-gradient steps of ``MeanFieldNormal``, which
            bring its scales to the optimum in hundreds of steps.
        schedule: Factor on the learning rate over the run: ``"cosine"`` falls to 0, ``"one-cycle"``
            rises first, ``"plateau"`` (``Plateau()``) falls by 10 after 5 epochs without a better
            validation NLL; or a function of the finished fraction in [0, 1], such as
            ``cooldown()``.
        rate_warm_up: Part of the run, in [0, 1), over which the rate rises linearly besides.
        clip_norm: Most that the norm of all gradients together may be, in nats per case; the
            history gets ``gradient_norm``, before clipping, to choose it by.
        accumulate: Batches a step. The step is that of one batch as many times as large, with a
            draw of the weights for every batch; BatchNorm sees the small batches.
        average: Decay of a moving average of the parameters, such as 0.999 (0.9999 in long runs),
            which takes their place when the training ends (see ``training.moving_average``).
            Validation, ``keep``, callbacks, and ``load`` from a checkpoint see it before. Of a
            guide only locations are averaged: scales and other spreads are left as trained, which
            the history's attributes list. Running statistics of BatchNorm are measured anew, in a
            pass over the batches before every validation and at the end; callbacks and unfinished
            checkpoints have such a model as it is trained. None keeps the last parameters.
        kl_weight: Weight of the KL. 1 is the ELBO; less is a tempered posterior, which the history
            records. A function of the finished fraction gives a warm-up.
        objective: What is optimised: ``Elbo()`` by default; ``ImportanceWeighted(particles)``, a
            tighter bound for local latents; ``Geco(target)``, the KL under a constraint on the
            NLL. The history gets what they add (``bound``, ``multiplier``).
        precision: ``"bfloat16"`` runs layers under autocast; log-densities stay float32.
            ``"auto"`` does where the device has instructions for it, and else is ``"float32"``.
        capture: On a GPU, record the step once as a CUDA graph and replay it: much faster where the
            work of a step is small. Batches of another size than the first, such as the last of an
            epoch, are trained on as without. Replays are compared with the step before they are
            used; results are those of a run without, but for rounding.
        compile_nets: Compile networks with random weights by ``torch.compile``, under one draw of
            them a batch: on a CPU core a U-Net's steps were 1.4 times faster, a LeNet's slower.
            The compiler takes a minute. Batches of another size than the first run as without.
        device: Where to train; a GPU where there is one, by default.
        seed: Seed of all draws and of the order of the batches. Member m of an ensemble uses
            seed + m, and equals a single run with that seed.
        checkpoint: File for the state of the run, replaced atomically.
        checkpoint_every: Seconds between checkpoints.
        resume: Resume from ``checkpoint`` if it exists. The result equals the uninterrupted run's.
            With more ``epochs`` than before, training goes on from the last epoch: the result is
            that of the longer run, unless a schedule is a function of the finished fraction.
            ``stopping`` and ``callbacks`` may differ as well.
        validation: Held-out batches; their NLL under 8 draws is recorded after every epoch; of
            a model whose density is known by a bound alone, minus that bound.
        keep: ``"best"``: model and guide end as they were after the epoch with the best validation
            NLL, which is then too good a score: test on other cases. ``load`` reads these from the
            checkpoint, too.
        stopping: ``EarlyStopping(patience=5)`` ends training where validation no longer improves.
        callbacks: Called with the history so far after every epoch; attributes ``epoch``,
            ``epochs``, ``member``. One that returns True, or raises ``StopTraining``, ends the
            training (of this member); one that fails otherwise is left out from then on. See
            ``CsvLogger`` and its like. After a resumption an epoch may be told twice.
        progress: Show a bar with ETA, ELBO, NLL and KL.

    Returns:
        Dataset over ``step`` with ``elbo``, ``nll``, ``kl`` (nats per case) and ``kl_weight``,
        coordinate ``epoch``, whose mean over an epoch is that of all cases (a small last batch
        adds little to it); ``validation_nll`` over ``validation_epoch`` where asked. So are
        ``gradient_norm``, ``learning_rate`` (of the first group, where it is no plain schedule),
        ``best_epoch`` and ``stopped_by``. An ensemble adds the dim ``chain``; members that stopped
        earlier are NaN from there on. The attribute ``ranks`` is the number of processes, where
        there are several.

    Raises:
        TypeError: On batches that cannot be iterated again and again.
        ValueError: On arguments or batches that do not fit, before any training; on a bad batch
            later, with what was learned so far in the checkpoint.
        FileNotFoundError: If files behind a data set are missing.
        FileExistsError: If ``checkpoint`` exists and ``resume`` is False.
        BlockingIOError: If another process or thread trains into ``checkpoint``.
        OSError: If ``checkpoint`` cannot be written; an earlier one is intact.
        KeyboardInterrupt: On Ctrl-C, once the step is done and saved; it says how to go on, and
            ends a script without a traceback. A second Ctrl-C stops at once.
        FloatingPointError: If the loss stops being finite; the last good checkpoint is kept.
        RuntimeError: If another process of several has failed.

    Warns:
        UserWarning: On BatchNorm that sees a part of each batch, on several processes.
        UserWarning: On a guide that the training has left without a spread, as ``SWAG`` that was
            stopped early; on a callback that fails; on a run that is trained further under a
            schedule of the finished fraction.
        RuntimeWarning: On bfloat16 where the machine only imitates it.
        UserWarning: On a collapsed latent (KL below 0.05 nats per case), on a KL above 1000 nats
            per case, on cases that a sampler of unknown weights visits several times in an epoch,
            on an epoch of another length than it seemed, and on a guide that is trained again with
            the same seed, which repeats order and draws.
    """
    process_group.join()
    if validation is not None:
        validation = adapted(validation, keys)
    settings = Settings(
        epochs=epochs,
        learning_rate=learning_rate,
        optimizer=optimizer,
        schedule=schedule,
        rate_warm_up=rate_warm_up,
        clip_norm=clip_norm,
        accumulate=accumulate,
        average=average,
        kl_weight=kl_weight,
        objective=objective,
        precision=precision,
        capture=capture,
        compile_nets=compile_nets,
        device=device,
        seed=seed,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=resume,
        validation=validation,
        keep=keep,
        stopping=stopping,
        callbacks=callbacks,
        progress=progress,
    )
    pairs = members_of(model, guide)
    if settings.epochs == 0 and not any(protocol.after_trainings(own) for _, own in pairs):
        reject("epochs", "1 or more", epochs, "0 is for guides such as Laplace(model, start=point)")
    batches = adapted(batches, keys, training=True)
    if settings.checkpoint is not None:
        warn_of_kept_workers(batches)
    loader, spec = as_loader(batches, num_cases), batch_spec(pairs[0][0])
    warn_if_slow(settings.precision, settings.device)
    with ExitStack() as held, rng.restored(), pyro.validation_enabled(False):
        held.enter_context(warnings.catch_warnings())
        path = settings.checkpoint
        if path is not None:
            with suppress(OSError):  # which is told by what writes the checkpoint
                path.parent.mkdir(parents=True, exist_ok=True)
        lock = nullcontext() if path is None else locked(path, "checkpoint")
        process_group.on_rank_0(lambda: held.enter_context(lock))
        # Pyro says so at every step of a PyroModule with a network whose weights are random.
        warnings.filterwarnings("ignore", message=".* was not registered in the param store")
        trainer = prepare(pairs, loader, spec, settings)
        if process_group.rank() == 0:
            held.callback(settings.callbacks.on_end)
        histories = trainer.run()
        if len(pairs) > 1 and process_group.num_ranks() > 1:
            join_members(trainer, path)
            histories = [member.history for member in trainer.members]
    history = join_histories(histories, ensemble=isinstance(guide, Ensemble))
    return history.assign_attrs(_notes(trainer.members[0], settings))


def _notes(member: Member, settings: Settings) -> dict[str, Any]:
    """What a history says of a run besides its figures."""
    losses, average = protocol.training_losses(member.model), member.average
    return {
        **({"ranks": process_group.num_ranks()} if process_group.num_ranks() > 1 else {}),
        **({"training_loss": "; ".join(losses)} if losses else {}),
        **({"keep": settings.keep} if settings.keep != "last" else {}),
        **({} if average is None else average.notes()),
        **({"precision": settings.precision} if settings.asked_precision == "auto" else {}),
    }
