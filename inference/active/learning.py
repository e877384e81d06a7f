"""Active learning: which cases are worth a label, asked again and again.

    start       a few labels, balanced by class where labels are known
    step k      train on all labels in hand -> figures on held-out cases
                -> score what has no label -> ask the oracle for the best -> step k + 1

Every random number of step k comes from ``step_seed(seed, k)``, the start and the first weights
from ``seed``: runs of several acquisitions with one seed are pairs, and a run that was killed goes
on as if it had not been. Labels that were bought are no random sample: the log-likelihood of the
training cases and ``loo`` are biased (Farquhar, Gal, Rainforth, ICLR 2021, arXiv:2101.11665), and a
purchased set favours the model that chose it.

Source: Gal, Islam, Ghahramani, "Deep Bayesian Active Learning with Image Data", ICML 2017,
arXiv:1703.02910.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import xarray as xr

from ppl_med.analysis.scoring import score
from ppl_med.checks import a_path, different_names, is_whole, known_keys, reject, whole
from ppl_med.data import Batches, check_disjoint
from ppl_med.inference import process_group
from ppl_med.inference.active.next_cases import Rule, Selection
from ppl_med.inference.active.oracles import AskedLabels, KnownLabels, Oracle, Pool
from ppl_med.inference.active.purchases import FILE, open_purchases
from ppl_med.inference.active.steps import Settings, Steps, made_program, start_positions
from ppl_med.inference.active.stopping import Stopping
from ppl_med.inference.adapted import adapted
from ppl_med.inference.batches import batch_spec, check_iterable, check_seed, first_batch
from ppl_med.inference.data_digest import data_digest
from ppl_med.inference.guides.ensemble import members_of
from ppl_med.inference.svi import fit
from ppl_med.programs import protocol
from ppl_med.programs.sites import Program, argument_names, full_name
from ppl_med.storage.atomic import check_writable
from ppl_med.storage.locks import locked

Figures = Callable[[xr.DataTree], xr.Dataset]
_OWN = ("model", "guide", "batches", "num_cases", "seed", "checkpoint", "resume", "device")


def active_learn(
    make_program: Callable[[], tuple[Program, Program]],
    pool: Batches,
    oracle: Oracle,
    *,
    budget: int,
    test: Any,
    acquisition: Rule = "bald",
    start: int | Sequence[Any] = 20,
    balanced: bool = True,
    size: int = 10,
    draws: int = 32,
    subsample: int | None = None,
    targets: Any = None,
    warm_start: bool = False,
    validation: Any = None,
    stopping: Stopping | None = None,
    figures: Figures = score,
    fit_options: Mapping[str, Any] | Callable[[int], Mapping[str, Any]] | None = None,
    acquisition_options: Mapping[str, Any] | None = None,
    keep: Sequence[str] = (),
    folder: str | Path | None = None,
    resume: bool = False,
    together: int = 1,
    observation: str | None = None,
    seed: int = 0,
    device: Any = None,
    progress: bool = True,
) -> xr.DataTree:
    """Buy labels step by step where an acquisition asks for them, and train on all in hand.

    Args:
        make_program: Makes a model and its guide, ``lambda: (model, guide)``, anew for every step;
            torch is seeded for it by ``seed``, so that all steps and acquisitions begin with the
            same weights.
        pool: ``Batches`` of the cases that can be bought, whole images, slices or patches; what is
            observed in them is not looked at. Its batch size, ``augment`` and ``transform`` are
            those of training.
        oracle: Labels that are known, by id or in the order of the pool; or a function from a list
            of ids to one label each (a person who looks, a program), whose answers are written to
            ``folder`` as they come. It may raise: a later call with ``resume`` asks for the rest.
        budget: Labels to buy in all, those of the start included.
        test: Held-out batches with observations, for the figures of every step and for nothing
            else.
        acquisition: Rule of ``analysis.acquisition.acquire``: a name, or a function of the tree.
        start: Labels at step 0, or the ids of these cases.
        balanced: Draw the start evenly from the classes, where the oracle's labels are known and
            single classes; else at random. It uses labels that nobody has paid for.
        size: Labels a step; the last step takes what is left of the budget.
        draws: Posterior draws a chain, of predictions.
        subsample: Cases without a label to score at each step, drawn at random; all by default.
        targets: Unlabelled batches of what one will be asked about, for acquisitions that need them
            ("epig"); the scored cases themselves by default.
        warm_start: Train on from the step before, which biases later steps to early purchases; else
            from scratch.
        validation: Held-out batches with observations, for ``stopping``. These labels are paid for,
            too.
        stopping: ``Reached("accuracy", at_least=0.95)``, or a function of the validation figures
            over ``step`` so far that says whether to stop. The test figures are not shown to it.
        figures: From a tree of ``predict`` to a Dataset; what has no draws is kept. By default
            ``analysis.scoring.score``.
        fit_options: Arguments of ``fit``, such as ``epochs``, or a function of the number of labels
            that gives them.
        acquisition_options: Further arguments of ``analysis.acquisition.acquire``, such as
            ``aggregation`` for masks.
        keep: What ``predict`` keeps of every draw in the pool, for rules that read features.
        folder: Where the run is written after each step; a function as oracle needs it. Holds
            ``run.nc``, the last step's checkpoint ``step-<k>.pt`` (for ``load``), and answers of a
            function as ``label-<place in the pool>.npy``.
        resume: Go on with the run in ``folder``: it selects what it would have selected
            uninterrupted. ``budget`` and ``stopping`` may differ, the rest may not.
        together: Ids that a function as oracle is given at once. With more than one, let it be a
            generator: what it has yielded is safe.
        observation: Argument of the model that is bought; by default its likelihood's.
        seed: Seed of everything.
        device: As in ``fit``.
        progress: Show a bar with ETA, labels in hand and the first test figure.

    Returns:
        DataTree with the groups ``purchases`` (case, in the order in which they were bought:
        ``step``, ``score`` when bought, which is NaN at the start, ``position`` in the pool and,
        where they are numbers, ``label``); ``labelled`` (step: ``num_labelled``, and
        ``class_count`` (step, class), cumulative, in cases or pixels); ``test`` and, where given,
        ``validation`` (step: the figures; coordinate ``num_labelled``). Attributes: the settings,
        ``stopped_by`` ("budget", "stopping" or "no" while it runs), ``num_validation``, the labels
        of validation.

    Raises:
        TypeError: The pool is no ``Batches``, or ``make_program`` gives no pair.
        ValueError: An argument is out of range; labels do not fit the cases or the model; ids are
            in the pool and among held-out cases; the acquisition needs several functions and the
            guide is a point; the run to resume was begun with other settings or data; several
            processes work together.
        FileExistsError: If ``folder`` holds a run and ``resume`` is False.
        BlockingIOError: If another process runs in ``folder``.
        OSError: If ``folder`` cannot be written.

    Whatever the oracle raises is raised on; answers it gave before are in ``folder``.
    """
    if process_group.num_ranks() > 1:
        raise ValueError(
            f"active_learn buys labels in one process, not in {process_group.num_ranks()}; call it "
            "without torchrun, or after torch.distributed.destroy_process_group() on one of them"
        )
    if not callable(make_program):
        reject("make_program", "a function that gives a model and its guide", make_program)
    seed, folder = check_seed(seed), None if folder is None else a_path("folder", folder)
    model, guide = made_program(make_program, seed)
    members_of(model, guide)
    spec, site = batch_spec(model), _site(model, observation)
    cases = Pool(pool, site, spec)
    held_out = {
        name: _held_out(name, given, cases)
        for name, given in {"test": test, "validation": validation}.items()
        if given is not None
    }
    if not callable(figures):
        reject("figures", "a function that gives a Dataset", figures)
    if stopping is not None and not callable(stopping):
        reject("stopping", "such as Reached('accuracy', at_least=0.95)", stopping)
    if stopping is not None and validation is None:
        raise ValueError(
            "stopping needs validation, held-out batches of its own: a rule that looks at test "
            "makes its figures too good"
        )
    named = None if is_whole(start) else different_names("start", start)
    number = whole("start", start) if named is None else len(named)
    unknown = [name for name in named or () if name not in cases.place]
    if unknown:
        reject("start", "ids of the pool", unknown[0])
    whole("budget", budget, least=number, most=len(cases.ids), fix="labels in all, start included")
    whole("size", size)
    selection = Selection(
        acquisition, dict(acquisition_options or {}), subsample, targets, tuple(keep)
    )
    selection.check(guide, site, size, draws)
    settings = Settings(
        make_program=make_program,
        test=held_out["test"],
        validation=held_out.get("validation"),
        selection=selection,
        budget=budget,
        size=size,
        draws=whole("draws", draws),
        warm_start=bool(warm_start),
        stopping=stopping,
        figures=figures,
        fit_options=_fit_options(fit_options),
        folder=folder,
        seed=seed,
        device=device,
        progress=progress,
    )
    with ExitStack() as held:
        if folder is not None:
            check_writable(folder / FILE, "run")
            held.enter_context(locked(folder / FILE, "run"))
        labels = _labels(oracle, cases, folder, whole("together", together))
        attrs = {
            "model": full_name(model),
            "guide": full_name(guide),
            "acquisition": selection.name,
            "start": number if named is None else ", ".join(map(str, named)),
            "balanced": int(bool(balanced) and labels.classes is not None and named is None),
            "size": size,
            "draws": draws,
            "subsample": subsample or len(cases.ids),
            "warm_start": int(settings.warm_start),
            "seed": seed,
            "observation": site,
            "oracle": labels.name,
            "pool": data_digest(pool, ["image", "id"]),
            "num_validation": 0 if validation is None else _number(held_out["validation"]),
        }
        bought = open_purchases(folder, attrs, resume)
        classes = protocol.coords(model).get("class")
        steps = Steps(settings, cases, labels, bought, classes, attrs)
        if not bought.positions:
            steps.start(
                start_positions(cases, labels, number if named is None else named, balanced, seed)
            )
        return steps.run()


def _site(model: Program, observation: str | None) -> str:
    """The argument of a model that labels go to."""
    names = [name for name in argument_names(model) if name not in ("image", "num_cases")]
    if observation is not None:
        if observation not in names:
            reject("observation", f"one of the model's arguments {names}", observation)
        return observation
    own = getattr(protocol.likelihood(model), "site", None)
    if own in names:
        return str(own)
    if len(names) != 1:
        raise ValueError(
            f"observation: {full_name(model)} takes {names}; say which of them is bought"
        )
    return names[0]


def _held_out(name: str, given: Any, pool: Pool) -> Any:
    """Held-out batches that hold observations, and none of the pool's cases."""
    batches = adapted(given)
    check_iterable(batches, name)
    first = first_batch(batches, name)
    if first.get(pool.site) is None:
        raise ValueError(f"{name} holds no {pool.site!r}, only {sorted(first)}; it is judged by it")
    pool.spec.check(first)
    ids = getattr(batches, "ids", None)
    if ids is not None and isinstance(ids[0], str):  # else they may be positions
        check_disjoint(pool.ids, ids, ("pool", name))
    return batches


def _number(batches: Any) -> int:
    """Cases in some batches."""
    known = getattr(batches, "num_cases", None)
    return int(known) if known is not None else sum(len(batch["image"]) for batch in batches)


def _labels(oracle: Any, pool: Pool, folder: Path | None, together: int) -> Any:
    if isinstance(oracle, Mapping) or not callable(oracle):
        return KnownLabels(oracle, pool)
    if folder is None:
        raise ValueError(
            "folder: an oracle that is a function needs one, where its answers are written as "
            "they come, so that none is lost; labels that are known go in as an array or a dict"
        )
    return AskedLabels(oracle, pool, folder, together)


def _fit_options(options: Any) -> Callable[[int], Mapping[str, Any]]:
    """Arguments of ``fit`` by the number of labels, checked whenever they are made."""
    known = [name for name in inspect.signature(fit).parameters if name not in (*_OWN, "progress")]

    def checked(number: int) -> Mapping[str, Any]:
        found = options(number) if callable(options) else dict(options or {})
        if not isinstance(found, Mapping):
            reject("fit_options", "arguments of fit, such as {'epochs': 50}", found)
        known_keys("fit_options", found, known)
        return found

    checked(1)
    return checked
