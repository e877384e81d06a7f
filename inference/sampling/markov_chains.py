"""``sample``: Markov chains whose draws are those of the posterior, not of a family near it.

What it leaves is a guide like any other: ``predict``, ``functions`` and ``save`` take it.
"""

import warnings
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyro
import torch

from ppl_med.checks import a_path, choice, finite, reject, whole
from ppl_med.inference import checkpoint as files
from ppl_med.inference import process_group
from ppl_med.inference.adapted import adapted
from ppl_med.inference.batches import (
    as_loader,
    batch_spec,
    check_one_grader,
    check_seed,
    choose_device,
    first_batch,
)
from ppl_med.inference.data_digest import DATA, data_digest
from ppl_med.inference.guides.kept_draws import KeptChains
from ppl_med.inference.sampling import refusals
from ppl_med.inference.sampling.contract import Kernel, check_kernel
from ppl_med.inference.sampling.coordinates import Coordinates
from ppl_med.inference.sampling.double_precision import in_precision
from ppl_med.inference.sampling.prepared_target import prepare_target
from ppl_med.inference.sampling.sampler import Sampler
from ppl_med.inference.training.preparation import check_checkpoint
from ppl_med.inference.training.value_units import learn_units
from ppl_med.programs import rng
from ppl_med.programs.isolation import alone, private_store, torch_defaults
from ppl_med.programs.parameters import modules_of, move, set_mode
from ppl_med.programs.sites import Program
from ppl_med.storage.locks import locked


@alone()
@torch_defaults()
def sample(
    model: Program,
    batches: Any,
    kernel: Kernel,
    *,
    draws: int = 500,
    warm_up: int = 500,
    chains: int = 4,
    thin: int = 1,
    start: Program | None = None,
    num_cases: int | None = None,
    keys: Mapping[str, str] | None = None,
    dtype: Literal["float64"] | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 60.0,
    resume: bool = False,
    progress: bool = True,
) -> KeptChains:
    """Sample the posterior of a model's weights and other global latents.

    ::

        guide = sample(model, Batches(arrays, batch_size=500), NUTS(), chains=4)
        tree = predict(model, guide, test)
        convergence.r_hat(tree), convergence.effective_draws(tree)

    Chains run one after the other in this process. The model is in evaluation mode meanwhile:
    parameters without a prior (norm layers, the one noise of a homoscedastic likelihood) stay as
    they are, and the posterior is that given their values. The model is left as it was. Random
    number generators of the process are left as they were.

    Memory holds all draws: chains * draws * weights * 4 bytes.

    Args:
        model: A Pyro program ``model(image, label=None, *, num_cases=None)`` whose latents are
            shared by all cases.
        batches: As in ``fit``, without augmentation. ``NUTS`` and ``HMC`` hold all cases in memory,
            and their potential counts each case and the prior once; ``SGLD`` and ``SGHMC`` read a
            batch a step, with its log-likelihood times num_cases / len(batch) (cases of unequal
            batches weigh the same over an epoch, as in ``fit``).
        kernel: ``NUTS()``, ``HMC()``, ``SGLD(step_size)`` or ``SGHMC(step_size)``.
        draws: Draws to keep of each chain.
        warm_up: First steps of each chain, which adapt step size and mass and are not kept. A step
            is a trajectory of ``NUTS`` and ``HMC``, a batch of ``SGLD`` and ``SGHMC``.
        chains: Chains, from starts and seeds of their own; R-hat needs at least 2.
        thin: Steps from one kept draw to the next.
        start: A guide, trained or not, from whose draws the chains start (of an ``Ensemble``,
            chain c from member c); from draws of the prior, by default, which are the farthest
            apart.
        num_cases: Size of the data set, where it cannot be read off ``batches``.
        keys: Names in the batches -> names of the model's arguments.
        dtype: ``"float64"`` runs model and data in double precision, which the acceptance of nets
            above some thousand weights needs; the draws are kept in the model's precision. None
            leaves both as they are.
        device: Where to run; a GPU where there is one, by default.
        seed: Seed of starts, momenta, noise and order of the batches.
        checkpoint: File for the state of the run, replaced atomically.
        checkpoint_every: Seconds between checkpoints.
        resume: Resume from ``checkpoint`` if it exists; the result equals the uninterrupted run's.
        progress: Show a bar with ETA, acceptance and step size.

    Returns:
        The chains, a guide whose draw s is the s-th kept one. ``predict`` and ``functions`` take
        all draws by default, or evenly spaced ones; the tree has the group ``sample_stats``
        (chain, draw) with ``step_size``, of ``NUTS`` and ``HMC`` also ``acceptance_rate``,
        ``diverging``, ``n_steps`` (gradients), ``lp`` (log-density of the unconstrained vector),
        ``energy`` (at the start of the trajectory), of ``NUTS`` ``tree_depth``.
        ``guide.posterior()`` has the draws of the weights themselves.

    Raises:
        TypeError: On batches that cannot be iterated again and again.
        ValueError: On arguments or batches that do not fit; on a ``checkpoint`` for several
            processes, each of which samples all chains; on a model without a posterior that
            stands still: trained by a loss, with latents per case, discrete latents, dropout of its
            own, BatchNorm that follows the batches, augmentation; where no start has a finite
            density.
        FileExistsError: If ``checkpoint`` exists and ``resume`` is False.
        BlockingIOError: If another process or thread writes to ``checkpoint``.
        OSError: If ``checkpoint`` cannot be written.
        KeyboardInterrupt: On Ctrl-C, once the step is done and saved.
        FloatingPointError: If the potential of a stochastic-gradient step is not finite; it names
            step and chain. (A trajectory of ``NUTS`` or ``HMC`` that leaves the finite is
            rejected, and counted as ``diverging``.)

    Warns:
        UserWarning: On parameters without a prior; on trajectories that diverged after the warm-up,
            where the draws may miss a part of the posterior.
    """
    kernel = check_kernel(kernel)
    draws, chains = whole("draws", draws), whole("chains", chains)
    thin, warm_up = whole("thin", thin), whole("warm_up", warm_up, least=0)
    seed, chosen = check_seed(seed), choose_device(device)
    finite("checkpoint_every", checkpoint_every, least=0)
    choice("dtype", dtype, (None, "float64"))
    kernel.check(warm_up)
    kernel.num_steps(draws, thin)
    path = None if checkpoint is None else a_path("checkpoint", checkpoint)
    if resume and path is None:
        raise ValueError("resume=True needs a checkpoint to resume from; pass checkpoint=<path>")
    if path is not None and path.suffix == ".safetensors":
        reject("checkpoint", "a file such as run.pt", str(path), "save writes .safetensors")
    if path is not None and process_group.rank() > 0:
        raise ValueError(
            f"checkpoint: each of {process_group.num_ranks()} processes samples all chains, and "
            "all would write to it; call sample without torchrun, or leave checkpoint out"
        )
    refusals.check_program(model)
    loader = as_loader(adapted(batches, keys, training=True), num_cases)
    refusals.check_random_data(loader)
    with ExitStack() as held:
        held.enter_context(rng.restored())
        held.enter_context(private_store())
        held.enter_context(pyro.validation_enabled(False))
        if path is not None:
            with suppress(OSError):  # which is told by what writes the checkpoint
                path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(path, "checkpoint"))
        resumed = check_checkpoint(path, resume=resume)
        spec, first = batch_spec(model), first_batch(loader.batches)
        spec.check(first, loader.num_cases)
        loader.see(first)
        check_one_grader(first)
        learn_units([model], loader.batches)
        move((model, start), chosen)
        set_mode((model, start), False)
        identity = {
            "kernel": kernel.settings(),
            **{"draws": draws, "warm_up": warm_up, "chains": chains, "thin": thin},
            **{"seed": seed, "dtype": dtype, "num_cases": loader.num_cases},
            **({} if kernel.full_batch else {"len(batches)": loader.num_batches}),
            **({} if kernel.full_batch else loader.settings()),
            "settings of the model": files.settings(model),
            "parameters of the model": files.digest([(model, None)]),
            "start": None if start is None else files.digest([(model, start)]),
            DATA: None if path is None else data_digest(loader.batches, spec.arguments),
        }
        precision = torch.get_default_dtype()
        precision = next((p.dtype for m in modules_of(model) for p in m.parameters()), precision)
        if dtype is not None:
            held.enter_context(in_precision(model, getattr(torch, dtype)))
        target, starts = prepare_target(
            model, start, loader, spec, chosen, dtype, full_batch=kernel.full_batch
        )
        refusals.warn_of_fixed(model)
        sampler = Sampler(
            kernel,
            target,
            draws=draws,
            warm_up=warm_up,
            chains=chains,
            thin=thin,
            seed=seed,
            start=starts.of_chain,
            checkpoint=path,
            checkpoint_every=checkpoint_every,
            identity=identity,
            progress=progress,
        )
        attrs = {"kernel": kernel.settings(), "tuning_steps": warm_up, "thin": thin, "seed": seed}
        if resumed and path is not None:
            sampler.resume(files.read(path))
        sampler.run()
        found = _kept(sampler, target.coordinates, attrs, None if dtype is None else precision)
    _warn_of_divergences(found)
    return found


def _kept(
    sampler: Sampler,
    coordinates: Coordinates,
    attrs: Mapping[str, Any],
    dtype: torch.dtype | None,
) -> KeptChains:
    """The draws of all chains, by site."""
    samples = [coordinates.samples(torch.stack(one), dtype) for one in sampler.kept]
    stats = [
        {name: torch.from_numpy(np.array([told[name] for told in one])) for name in one[0]}
        for one in sampler.stats
    ]
    return KeptChains(samples, stats, attrs)


def _warn_of_divergences(found: KeptChains) -> None:
    stats = found.sample_stats()
    if stats is None or "diverging" not in stats:
        return
    share = float(stats["diverging"].mean())
    if share > 0:
        warnings.warn(
            f"{share:.1%} of the trajectories diverged after the warm-up: the draws may miss a "
            "part of the posterior where it is narrow; raise target_accept, sample in "
            "dtype='float64', or warm up longer",
            stacklevel=4,
        )
