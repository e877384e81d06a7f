"""What the contract asks of a guide, rule by rule; ``ppl_med.testing.check_guide`` runs them all.

Every rule returns sentences: what is wrong, and how to mend it.
"""

from collections.abc import Mapping

import torch
from pyro.poutine import Trace
from torch import Tensor

from ppl_med.programs.elbo import is_fixed, latent_faults, terms_of, total
from ppl_med.programs.parameters import set_mode
from ppl_med.programs.protocol import left_to_prior
from ppl_med.programs.sites import Program, Site, density_faults, plates, stated_sites
from ppl_med.testing import behaviour_rules as behaviour
from ppl_med.testing.program_runs import Call, ProgramError, learnable, run


def guide_violations(
    model: Program, guide: Program, call: Call, modules: behaviour.Modules
) -> list[str]:
    """Everything in which a guide breaks its contract with a model that keeps its own.

    ``modules`` are those that ran so far, by name, kept up to date by ``preserved_state``.
    """
    set_mode([model, guide], False)
    before = behaviour.parameter_names(guide)
    try:
        with torch.no_grad():
            run(guide, call)
            late = behaviour.late_parameters(guide, before, beside=model)
            traces = _traces(model, guide, call)
    except ProgramError as error:
        fault = getattr(error, "__notes__", ["it fails with observations"])[0]
        return [f"{fault}: {error}"]
    mismatched = [
        *_latents(traces, left_to_prior(guide)),
        *density_faults(stated_sites(traces["guide"], observed=False)),
        *_shapes_and_plates(traces, call.num_cases),
        *_support(traces),
        *_unreparametrised(guide, call, traces),
    ]
    dropout = behaviour.active_dropout(guide, modules)
    found = [*late, *mismatched, *dropout, *behaviour.moving_buffers(guide, call, modules)]
    broken = [
        *behaviour.infinite_densities(stated_sites(traces["guide"], observed=False), "the guide"),
        *behaviour.infinite_densities(
            stated_sites(traces["model"]), "under the guide's draw, the model"
        ),
    ]
    if broken:  # the other rules read log-densities
        return found + broken
    if not dropout:
        found += behaviour.randomness(guide, call, traces["guide"])
    if not mismatched:  # else the ELBO is not defined
        found += behaviour.gradient_faults(lambda seed: _elbo(model, guide, call, seed), "the ELBO")
    return found


def _traces(model: Program, guide: Program, call: Call) -> dict[str, Trace]:
    """Run guide and model with and without observations, and as a third of a data set."""
    size = call.num_cases
    third, free = {"num_cases": 3 * size}, {"observed": False}
    as_third = f"it fails with num_cases={3 * size} for {size} images"
    options: list[tuple[str, str, Program, str | None, dict]] = [
        ("prior", "the model fails", model, None, {}),
        ("guide", "it fails with observations", guide, None, {}),
        ("silent", "it fails without observations", guide, None, free),
        ("third", as_third, guide, None, third),
        ("prior_third", "the model fails", model, None, third),
        ("model", "the model fails with the guide's draw", model, "guide", {}),
        ("predicted", "the model fails without observations", model, "silent", free),
    ]
    traces: dict[str, Trace] = {}
    for name, fault, program, replay, how in options:
        try:
            traces[name] = run(program, call, replay=traces[replay] if replay else None, **how)
        except ProgramError as error:
            error.add_note(fault)
            raise
    return traces


def _latents(traces: Mapping[str, Trace], left: frozenset[str]) -> list[str]:
    wanted = stated_sites(traces["prior"], observed=False)
    proposed, silent = (stated_sites(traces[name], observed=False) for name in ("guide", "silent"))
    both = (latent_faults(wanted, given, left) for given in (proposed, {**silent, **proposed}))
    found = [*dict.fromkeys(fault for faults in both for fault in faults)]
    found += [
        f"it observes site {name!r}; a guide only proposes, so take obs= away"
        for name in stated_sites(traces["guide"], observed=True)
    ]
    found += [
        f"without observations it proposes no {name!r}, a global latent: only local latents may "
        "fall back to the model's prior"
        for name, site in wanted.items()
        if name in proposed and name not in silent and "case" not in plates(site)
    ]
    return found


def _shapes_and_plates(traces: Mapping[str, Trace], size: int) -> list[str]:
    found = []
    for name, mine, its in _pairs(traces, "guide", "prior"):
        if mine["fn"].shape() != its["fn"].shape() or mine["fn"].event_dim != its["fn"].event_dim:
            found.append(
                f"it proposes {name!r} with shape {_shape(mine)}, the model has {_shape(its)} "
                "(batch | event); make them equal, with to_event for event axes"
            )
        if {*plates(mine)} != {*plates(its)}:
            found.append(
                f"it proposes {name!r} in plates {sorted(plates(mine))}, the model in "
                f"{sorted(plates(its))}; open the same plates"
            )
    for name, mine, its in _pairs(traces, "third", "prior_third"):
        here, there = float(mine["scale"]), float(its["scale"])
        if abs(here - there) > 1e-6 * there and {*plates(mine)} == {*plates(its)}:
            found.append(
                f"it scales {name!r} by {here:g}, the model by {there:g}, with num_cases="
                f"{3 * size} for {size} images; open the plate as in the model, with num_cases"
            )
    return found


def _shape(site: Site) -> str:
    return f"{tuple(site['fn'].batch_shape)} | {tuple(site['fn'].event_shape)}"


def _pairs(traces: Mapping[str, Trace], guide: str, model: str) -> list[tuple[str, Site, Site]]:
    wanted = stated_sites(traces[model], observed=False)
    proposed = stated_sites(traces[guide], observed=False)
    return [(name, site, wanted[name]) for name, site in proposed.items() if name in wanted]


def _support(traces: Mapping[str, Trace]) -> list[str]:
    found = []
    for name, mine, its in _pairs(traces, "guide", "model"):
        if not isinstance(mine["value"], Tensor):
            continue
        try:
            inside = its["fn"].support.check(mine["value"])
        except (NotImplementedError, RuntimeError):
            continue  # no declared support, or a shape that is reported already
        if not inside.all():
            found.append(
                f"it proposes {name!r} outside the model's support {its['fn'].support}; propose "
                "on that support, or transform"
            )
    return found


def _unreparametrised(guide: Program, call: Call, traces: Mapping[str, Trace]) -> list[str]:
    if all(s["fn"].has_rsample for s in stated_sites(traces["guide"], observed=False).values()):
        return []
    with torch.enable_grad():  # which parameters learn shows only here
        trace = run(guide, call)
    return [
        f"it proposes {name!r} from {type(site['fn']).__name__}, which has no rsample, so no "
        "gradient passes; propose a continuous relaxation, or sum the latent out in the model"
        for name, site in stated_sites(trace, observed=False).items()
        if not (site["fn"].has_rsample or is_fixed(site["fn"]))
    ]


def _elbo(
    model: Program, guide: Program, call: Call, seed: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The ELBO that ``fit`` maximises, in training mode, and the parameters."""
    set_mode((model, guide), True)
    guide_trace = run(guide, call, seed=seed)
    model_trace = run(model, call, replay=guide_trace, seed=seed)
    nll, kl = terms_of(model_trace, guide_trace)
    return -total(nll) - total(kl), {
        **{f"model.{name}": leaf for name, leaf in learnable(model, model_trace).items()},
        **{f"guide.{name}": leaf for name, leaf in learnable(guide, guide_trace).items()},
    }
