"""Simulation-based calibration (SBC): is an inference right for a model, on average over its prior?

    truth ~ prior,   data ~ model(truth),   draws ~ inference(data)     again and again

If the draws come from the posterior, the truth's rank among them is uniform, whatever the model
(Cook, Gelman and Rubin 2006; Talts et al. 2018). An inference that returns the prior passes on
every parameter; the rank of the joint log-likelihood finds it (Modrák et al. 2023), so that is
always among the quantities. Of a net the functions are ranked, not the weights: hidden units can
change places without changing the function.

Variational guides are approximations: a mean-field normal over correlated weights fails by
construction (∪), and *how far* it fails is the result, as the width ratio and the distance of the
ECDF.

Posterior SBC asks the same where it matters, near data that were observed: truths are drawn from
the posterior given them, and each inference sees them and the simulated data together.

References: Talts, Betancourt, Simpson, Vehtari and Gelman, arXiv:1804.06788. Modrák et al.,
Bayesian Analysis 2023. Säilynoja, Bürkner and Vehtari, Statistics and Computing 32, 2022.
Säilynoja, Schmitt, Bürkner and Vehtari, "Posterior SBC", arXiv:2502.03279.
"""

import copy
import multiprocessing
import pickle
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from ppl_med.checks import a_path, inside, reject, whole
from ppl_med.inference.batches import check_seed
from ppl_med.inference.data_digest import DATA, data_digest
from ppl_med.programs import protocol
from ppl_med.programs.sites import Program, argument_names, full_name
from ppl_med.testing.finished_simulations import FinishedSimulations, Row
from ppl_med.testing.rank_verdicts import places
from ppl_med.testing.simulated_inference import (
    Simulator,
    infer,
    isolated,
    posterior_draws,
    unlearned,
)
from ppl_med.testing.simulated_quantities import Quantities, Values

LEAST_SIMULATIONS = 10


def simulation_based_calibration(
    model: Program,
    inference: Callable[..., Any],
    quantities: Quantities | None = None,
    *,
    batch: Mapping[str, Any],
    at: Mapping[str, Any] | None = None,
    around: Mapping[str, Any] | None = None,
    simulations: int = 200,
    draws: int = 99,
    level: float = 0.95,
    seed: int = 0,
    workers: int = 1,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> xr.DataTree:
    """Fit a model to data drawn from it, many times, and rank each truth among the draws.

    ::

        def inference(model, batches, seed):
            guide = MeanFieldNormal(model)
            fit(model, guide, batches, epochs=500, seed=seed, progress=False)
            return guide

        tree = simulation_based_calibration(model, inference, batch={"image": image}, workers=4)
        print(tree["verdict"].to_dataset().to_dataframe())
        arviz_plots.plot_ecdf_pit(tree)

    Every simulation starts from its own seed, with a fresh copy of the model and an empty parameter
    store, on one thread: results do not depend on ``workers``, and nothing is warm-started. What
    has no prior (trained norm layers, ``pyro.param``, running statistics) must stay as it is.

    Args:
        model: A Pyro program whose unknowns all have priors.
        inference: ``inference(model, batches, seed)``, where ``batches`` is a list of one batch
            with observations. It returns a guide, such as a fitted one, an ``Ensemble`` or the
            result of a sampler; or draws by site, a dict of arrays (draw, ...). Draws that depend
            on each other give ranks that are not uniform: thin a chain until they do not. A latent
            of every case must be proposed given its observation.
        quantities: What to rank beside the joint log-likelihood: names of latents, of
            ``pyro.deterministic`` sites, or of what ``predict`` stores of the likelihood
            (``probs``, ``loc``); or a dict from a name to a function of all these by name. By
            default the latents of all cases that are no weights of ``RandomWeights`` and have at
            most 20 entries, and the predictions.
        batch: The design: inputs of the model. Observations among them are replaced.
        at: Inputs where predictions are ranked; the first 4 cases of ``batch`` by default.
        around: Observed cases, with observations: posterior SBC near them. Not for models with a
            latent of every case.
        simulations: How many, each with an inference of its own. 200 see a width that is a fifth
            off, 1000 one that is a tenth off.
        draws: Draws per simulation, L; as many of every member of an ensemble.
        level: Probability that a right inference passes on all quantities together (Holm).
        seed: Seed of everything.
        workers: Processes. From 2 on, model, inference and quantities must be importable (defined
            in a module, no lambda), and a script needs ``if __name__ == "__main__":``.
        checkpoint: ``*.nc``: where simulations that are done are kept; an existing one is gone on
            with, to more simulations too. The inference is taken for the same.
        progress: Show a bar with ETA.

    Returns:
        DataTree. ``prior_sbc`` (of ``around``, ``posterior_sbc``): places of the truths among the
        draws, u in (0, 1), of every quantity, dims (chain, draw, ...) with ``draw`` the simulation,
        as ``arviz_plots.plot_ecdf_pit`` reads them. ``verdict`` over ``quantity``: ``p_value`` of
        uniformity and ``adjusted_p_value`` of all together, ``passes``, ``distance`` of the ECDF
        and how far it is ``outside_band``, ``width_ratio`` (sd of the draws over the right one) and
        ``bias`` (in sd of the draws) with standard errors, ``shape``. ``ranks`` (simulation,
        quantity): ``rank`` (0 to L), ``truth``, ``mean`` and ``sd`` of the draws.

    Raises:
        TypeError: The inference returns neither a guide nor draws.
        ValueError: An argument does not fit; the model has factors, or a loss in the place of a
            likelihood; the inference has changed what has no prior, or left too few draws; the
            guide is ``BernoulliDropout``, whose masks have no prior; a quantity is NaN; model or
            inference cannot be sent to other processes. A note names the simulation.
    """
    simulations = whole("simulations", simulations, least=LEAST_SIMULATIONS)
    draws, seed = whole("draws", draws, least=4), check_seed(seed)
    level, workers = inside("level", level), whole("workers", workers)
    path = None if checkpoint is None else a_path("checkpoint", checkpoint)
    if path is not None and path.suffix != ".nc":
        reject("checkpoint", "a path that ends in .nc", checkpoint)
    losses = protocol.training_losses(model)
    if losses:
        raise ValueError(
            f"the model is trained by {', '.join(losses)}, which is no density of data: nothing "
            "can be simulated; calibrate it with a likelihood"
        )
    simulator = Simulator(model, inference, quantities, dict(batch), at, draws, seed)
    settings = {"seed": seed, "draws": draws, DATA: data_digest([batch], argument_names(model))}
    settings["quantities"] = "default" if quantities is None else ", ".join(quantities)
    if at is not None:
        settings["at"] = data_digest([at], argument_names(model))
    if around is not None:
        simulator.given, simulator.truths = dict(around), _around(simulator, around, simulations)
        settings["around"] = data_digest([around], argument_names(model))
        settings["simulations"] = simulations
    done = FinishedSimulations(path, settings)
    with closing(done), tqdm(total=simulations, desc="SBC", disable=not progress) as bar:
        left = [number for number in range(simulations) if number not in done.rows]
        bar.update(simulations - len(left))
        for number, row in _rows(simulator, left, workers):
            done.add(number, row)
            bar.update()
    tree = done.tree(simulations, level, "prior_sbc" if around is None else "posterior_sbc")
    named = {"model": full_name(model), "inference": full_name(inference)}
    tree.attrs |= {**named, **settings, "simulations": simulations, "level": level}
    return tree


def _around(simulator: Simulator, given: Mapping[str, Any], simulations: int) -> list[Values]:
    """A latent state for each simulation, from the posterior given observed cases."""
    with isolated(simulator.seed):
        model = copy.deepcopy(simulator.model)
        fixed = unlearned(model)
        found = infer(simulator.inference, model, given, simulator.seed)
        return posterior_draws(model, found, given, simulations, simulator.seed, fixed)


def _row(simulator: Simulator, number: int) -> Row:
    """Shapes of the quantities by name, and figures of all their entries, (figure, entry)."""
    values = simulator.run(number)
    shapes = {name: array.shape[1:] for name, array in values.items()}
    flat = np.concatenate([array.reshape(len(array), -1) for array in values.values()], axis=1)
    rng = np.random.default_rng([simulator.seed, number])
    return shapes, places(flat[0], flat[1:], rng)


_sent: list[Simulator] = []  # to this process, where it is one of several workers


def _receive(simulator: Simulator) -> None:
    _sent[:] = [simulator]


def _numbered_row(number: int) -> tuple[int, Row]:
    return number, _row(_sent[0], number)


def _rows(simulator: Simulator, numbers: list[int], workers: int) -> Iterator[tuple[int, Row]]:
    """Results as they come."""
    if workers == 1 or len(numbers) < 2:
        yield from ((number, _row(simulator, number)) for number in numbers)
        return
    try:
        pickle.dumps(simulator)
    except Exception as error:
        raise ValueError(
            f"workers={workers}: model, inference and quantities must go to other processes, and "
            f"cannot ({error}); define them in a module that can be imported, without lambdas and "
            "inner functions, or pass workers=1"
        ) from error
    known = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_receive, initargs=(simulator,))
    try:
        yield from (
            one.result() for one in as_completed(pool.submit(_numbered_row, n) for n in numbers)
        )
    finally:
        pool.shutdown(cancel_futures=True)
