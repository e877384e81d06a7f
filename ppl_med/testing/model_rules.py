"""What the contract asks of a model, rule by rule; ``ppl_med.testing.check_program`` runs them all.

Every rule returns sentences: what is wrong, and how to mend it.
"""

from collections.abc import Mapping

import torch
from pyro.nn import PyroModule
from pyro.poutine import Trace
from torch import Tensor, nn

from ppl_med.programs.parameters import set_mode
from ppl_med.programs.sites import Program, density_faults, factors, plates, stated_sites
from ppl_med.testing import behaviour_rules as behaviour
from ppl_med.testing.program_runs import (
    Call,
    ProgramError,
    learnable,
    log_density,
    run,
    same,
    total_log_density,
)
from ppl_med.weights import RandomWeights

PLATE = 'pyro.plate("case", num_cases or len(image), subsample=image)'


def program_violations(model: Program, call: Call, modules: behaviour.Modules) -> list[str]:
    """Everything in which a model breaks its contract.

    ``modules`` are those that ran so far, by name, kept up to date by ``preserved_state``.
    """
    if not call.takes_num_cases:
        return ["it takes no keyword num_cases; add `*, num_cases=None` and use it in " + PLATE]
    set_mode([model], False)
    before = behaviour.parameter_names(model)
    try:
        with torch.no_grad():
            traces = _traces(model, call)
    except ProgramError as error:
        fault = error.__notes__[0]
        return [f"it fails {fault}: {error}", *_globals_in_plate(model, error.trace)]
    shapes = {n: site for run in ("free", "alone") for n, site in stated_sites(traces[run]).items()}
    found = [
        *behaviour.late_parameters(model, before),
        *density_faults(shapes),
        *_observation_names(traces, call),
        *_globals_in_plate(model, traces["alone"]),
        *_plate_membership(traces),
        *_scales(traces, call.num_cases),
        *_event_names(traces["alone"]),
        *behaviour.active_dropout(model, modules),
        *behaviour.moving_buffers(model, call, modules),
    ]
    broken = behaviour.infinite_densities(stated_sites(traces["alone"]), "the model")
    if broken:  # the other rules read log-densities
        return found + broken
    noise = (
        behaviour.randomness(model, call, traces["alone"])
        if not behaviour.active_dropout(model, modules)
        else []
    )
    if not noise:
        found += _densities_free_of_num_cases(traces)
    return (
        found
        + noise
        + behaviour.gradient_faults(lambda s: _log_joint(model, call, s), "the log-density")
    )


def _traces(model: Program, call: Call) -> dict[str, Trace]:
    """Run the model alone, as the whole data set, as a third of it, unobserved, and shorter."""
    size = call.num_cases
    hint = f"; use {PLATE}"
    as_third = f"with num_cases={3 * size} for {size} images{hint}"
    options: dict[str, tuple[str, Call, dict]] = {
        "alone": ("with its observations", call, {}),
        "whole": (f"with num_cases={size}, the batch's size{hint}", call, {"num_cases": size}),
        "third": (as_third, call, {"num_cases": 3 * size}),
        "free": ("without observations", call, {"observed": False}),
        "shorter": (f"on {size - 1} of the {size} cases", call.without_last_case(), {}),
    }
    traces: dict[str, Trace] = {}
    for name, (when, arguments, how) in options.items():
        replay = traces["alone"] if name in ("whole", "third") else None
        try:
            traces[name] = run(model, arguments, replay=replay, **how)
        except ProgramError as error:
            error.add_note(when)
            raise
    return traces


def _observation_names(traces: Mapping[str, Trace], call: Call) -> list[str]:
    found = []
    arguments = list(call.observations)
    observed = stated_sites(traces["alone"], observed=True)
    if not observed:
        found.append("it observes nothing; observe a site of the name of an argument")
    for name in observed:
        if name not in call.observations and name not in call.inputs:
            found.append(
                f"observed site {name!r} is not the name of an observation argument "
                f"({arguments}); give both one name, so that predict knows what conditions it"
            )
    drawn = stated_sites(traces["alone"], observed=False)
    free = stated_sites(traces["free"])
    for name in arguments:
        if name in drawn:
            found.append(f"site {name!r} is drawn although {name} is given; pass obs={name}")
        elif name not in observed:
            found.append(f"argument {name!r} conditions no site of its name; observe it at one")
        elif name not in free:
            found.append(
                f"without observations there is no site {name!r} to predict; sample it with "
                f"obs={name}, which draws it when {name} is None"
            )
        elif free[name]["is_observed"]:
            found.append(f"site {name!r} is observed although {name} is None; pass obs={name}")
    return found


def _globals_in_plate(model: Program, trace: Trace) -> list[str]:
    weights = _weight_sites(model)
    return [
        f"global latent {name!r} stands inside plate 'case', so every case gets weights of its "
        "own; draw it before the plate opens"
        for name, site in stated_sites(trace, observed=False).items()
        if name in weights and "case" in plates(site)
    ]


def _weight_sites(model: Program) -> set[str]:
    """Names of the sites that are weights of a module."""
    names = set()
    for path, module in model.named_modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, RandomWeights):
            names.add(module.site)
        if isinstance(module, PyroModule):
            names.update(f"{path}.{name}".lstrip(".") for name in module._pyro_samples)
    return names


def _plate_membership(traces: Mapping[str, Trace]) -> list[str]:
    found = []
    shorter = stated_sites(traces["shorter"])
    for name, site in stated_sites(traces["alone"]).items():
        if "case" in plates(site):
            continue
        if site["is_observed"]:
            found.append(f"observed site {name!r} stands in no plate 'case'; open {PLATE}")
        elif name in shorter and shorter[name]["fn"].shape() != site["fn"].shape():
            found.append(
                f"latent {name!r} changes its shape with the number of cases but stands in no "
                f"plate 'case'; open {PLATE} around it"
            )
    return found


def _scales(traces: Mapping[str, Trace], size: int) -> list[str]:
    found = []
    whole, third = (stated_sites(traces[key]) for key in ("whole", "third"))
    for name, site in stated_sites(traces["alone"]).items():
        if name not in whole or name not in third:
            found.append(f"site {name!r} vanishes when num_cases is given; keep it")
            continue
        local = "case" in plates(site)
        ratio = float(third[name]["scale"]) / float(whole[name]["scale"])
        if local and abs(ratio - 3) > 1e-6:
            found.append(
                f"site {name!r} has scale {ratio:g} with num_cases={3 * size} for {size} images, "
                f"not num_cases / len(image) = 3; open the plate as {PLATE}"
            )
        elif local and plates(site)["case"].full_size != size:
            found.append(
                f"plate 'case' of site {name!r} has size {plates(site)['case'].full_size} for "
                f"{size} images and no num_cases; open it as {PLATE}"
            )
        elif not local and not site["is_observed"] and abs(ratio - 1) > 1e-6:
            found.append(
                f"global latent {name!r} is scaled by {ratio:g} with num_cases; its log-density "
                "counts once whatever the batch, so scale nothing around it"
            )
    return found


def _densities_free_of_num_cases(traces: Mapping[str, Trace]) -> list[str]:
    found = []
    third = stated_sites(traces["third"])
    for name, site in stated_sites(traces["whole"]).items():
        if name in third:
            here, there = log_density(site), log_density(third[name])
            if here is not None and there is not None and not same(here, there):
                found.append(
                    f"the distribution of site {name!r} itself changes with num_cases; leave the "
                    "scaling to the plate"
                )
    return found


def _event_names(trace: Trace) -> list[str]:
    found = []
    for name, site in stated_sites(trace).items():
        if not site["is_observed"] and "case" not in plates(site):
            continue
        num_event = len(site["fn"].event_shape)
        named = list((site["infer"] or {}).get("event_dims", ()))
        if num_event != len(named):
            found.append(
                f"site {name!r} has {num_event} event axes and {len(named)} names for them "
                f"{named}; name each: pyro.sample({name!r}, ..., infer=dims(...))"
            )
        elif len({*named, *plates(site)}) < len(named) + len(plates(site)):
            found.append(f"site {name!r} uses an axis name twice: {[*plates(site), *named]}")
    return found


def _log_joint(model: Program, call: Call, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Log p(observations, latents) and factors, with the latents drawn from their priors."""
    set_mode([model], True)
    trace = run(model, call, seed=seed)
    stated = [*stated_sites(trace).values(), *factors(trace)]
    return total_log_density(stated), learnable(model, trace)
