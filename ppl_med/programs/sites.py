"""Reading a Pyro program: its arguments, and the sites of its traces."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor, nn

Program = Callable[..., Any]
Batch = Mapping[str, Any]
Site = dict[str, Any]


def signature(program: Program) -> Mapping[str, inspect.Parameter]:
    """A program's arguments by name (of ``forward`` for modules)."""
    function = program.forward if isinstance(program, nn.Module) else program
    return inspect.signature(function).parameters


def argument_names(program: Program) -> list[str]:
    """Names of a program's arguments."""
    return list(signature(program))


def required_arguments(program: Program) -> frozenset[str]:
    """Arguments without a default: what a program reads whether it is conditioned or not.

    An observed site of such a name is what the program generates and its guide reads, as a VAE's
    ``image``: it is given to ``predict`` too.
    """
    return frozenset(name for name, p in signature(program).items() if p.default is p.empty)


def takes_num_cases(program: Program) -> bool:
    """Whether a program has the keyword ``num_cases``."""
    known = signature(program)
    return "num_cases" in known or any(p.kind is p.VAR_KEYWORD for p in known.values())


def describe(inputs: Mapping[str, Any]) -> str:
    """Names and shapes of a batch's arguments, for messages."""
    return ", ".join(
        f"{name} {tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else name
        for name, value in inputs.items()
    )


def select_arguments(program: Program, batch: Batch) -> dict[str, Any]:
    """The entries of a batch that the program takes as arguments; None counts as absent."""
    names = argument_names(program)
    chosen = {name: batch[name] for name in names if batch.get(name) is not None}
    if not chosen:
        raise ValueError(
            f"the batch has the keys {sorted(batch)}, none of which is an argument of the model "
            f"({names}); name the batch's entries as the model names its arguments"
        )
    return chosen


def to_device(values: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Tensors of a dict on the device; anything else as it is.

    Those that were made in torch's inference mode are copied, for they take part in no gradient.
    """
    found = dict(values)
    for name, value in values.items():
        if isinstance(value, Tensor):
            moved = send(value, device)
            found[name] = moved.clone() if moved.is_inference() else moved
    return found


def send(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device, for which the host does not wait.

    A GPU copies from the memory of the CPU by itself only where that is pinned; before a copy from
    other memory the host waits for all that the GPU still has to do.
    """
    return _pinned(value, device).to(device, non_blocking=True)


def send_into(value: Tensor, target: Tensor) -> None:
    """As ``send``, into a tensor that is there already, on whatever device."""
    target.copy_(_pinned(value, target.device), non_blocking=True)


def _pinned(value: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and value.device.type == "cpu" and torch.cuda.is_available():
        return value.pin_memory()
    return value


def batch_size(values: Mapping[str, Any]) -> int:
    """Number of cases in a batch: the length of its first tensor."""
    return next(len(value) for value in values.values() if isinstance(value, Tensor))


def sample_sites(trace: poutine.Trace) -> dict[str, Site]:
    """Sample sites of a trace without the plates' own subsampling sites; factors are among them."""
    nodes: dict[str, Any] = dict(trace.nodes)
    return {
        name: node
        for name, node in nodes.items()
        if node["type"] == "sample" and not site_is_subsample(node)
    }


def stated_sites(trace: poutine.Trace, *, observed: bool | None = None) -> dict[str, Site]:
    """Sample sites that belong to the model: no factors, deterministic or auxiliary sites.

    ``observed`` chooses observed sites, or latent ones; None takes both.
    """
    return {
        name: site
        for name, site in sample_sites(trace).items()
        if not site_is_factor(cast(Any, site))
        and not any((site["infer"] or {}).get(key) for key in ("_deterministic", "is_auxiliary"))
        and observed in (None, site["is_observed"])
    }


def factors(trace: poutine.Trace) -> list[Site]:
    """Factor sites of a trace."""
    return [site for site in sample_sites(trace).values() if site_is_factor(cast(Any, site))]


def plates(site: Mapping[str, Any]) -> dict[str, Any]:
    """A site's plates by name."""
    return {frame.name: frame for frame in site["cond_indep_stack"]}


def is_local(site: Mapping[str, Any]) -> bool:
    """Whether a site has one value per case."""
    return "case" in plates(site)


def case_dim(node: Mapping[str, Any]) -> int:
    """Dim of the plate of cases in a site's batch shape, counted from the right, so negative."""
    if is_local(node):
        return int(plates(node)["case"].dim)
    raise ValueError(
        f"site {node['name']!r} stands in no plate of cases; write it inside "
        "pyro.plate('case', num_cases or len(image), subsample=image)"
    )


def density_faults(
    sites: Mapping[str, Mapping[str, Any]],
    values: Mapping[str, Any] | None = None,
    front: int = 0,
) -> Iterator[str]:
    """Sentences about sites whose log-density has another shape than their plates.

    A mean (case,) and a value (case, 1) broadcast: every case would be scored against every other.
    As in Pyro, leading axes of size 1 do no harm.

    Args:
        sites: Sample sites by name.
        values: Values to score in the place of those drawn.
        front: Axes that these values have in front of the plates, such as of graders.
    """
    for name, site in sites.items():
        if (site["infer"] or {}).get("_deterministic"):
            continue
        fn, given = site["fn"], values is not None and name in values
        value = values[name] if values is not None and given else site["value"]
        frames = [frame for frame in site["cond_indep_stack"] if frame.dim is not None]
        expected = [1] * max((-frame.dim for frame in frames), default=0)
        for frame in frames:
            expected[frame.dim] = frame.size
        # The value of a site of weights may be no tensor: drawn where a layer uses it.
        full = tuple(value.shape if isinstance(value, Tensor) else fn.shape())
        outer = full[front if given else 0 : max(len(full) - len(fn.event_shape), 0)]
        mask = site["mask"]
        shapes = [tuple(fn.batch_shape), outer, tuple(getattr(mask, "shape", ()))]
        try:
            shape: tuple[int, ...] | None = np.broadcast_shapes(*shapes)  # torch's takes 20 x
        except ValueError:
            shape = None
        if shape is None or _trimmed(shape) != _trimmed(expected):
            yield (
                f"site {name!r} has {tuple(expected)} entries by its plates, but its distribution "
                f"has batch shape {tuple(fn.batch_shape)} and its value shape {full}, "
                + ("which do not fit" if shape is None else f"so that {shape} would be scored")
                + "; give both one entry per case, such as mean[:, 0] for a column, and declare "
                "further axes by .to_event(...)"
            )


def check_densities(
    sites: Mapping[str, Mapping[str, Any]],
    values: Mapping[str, Any] | None = None,
    front: int = 0,
) -> None:
    """Raise a ValueError on the first of ``density_faults``."""
    for fault in density_faults(sites, values, front):
        raise ValueError(fault)


def _trimmed(shape: Sequence[int]) -> tuple[int, ...]:
    first = next((axis for axis, size in enumerate(shape) if size != 1), len(shape))
    return tuple(shape[first:])


def site_dims(trace: Any, site: str) -> list[str]:
    """A site's axis names: its plates, outermost first, then its event axes.

    Event axes without a name are called ``<site>_dim_<i>``, which is ArviZ's convention.
    """
    node: Any = trace.nodes[site]
    plates = {frame.dim or 0: frame.name for frame in node["cond_indep_stack"]}
    named: Sequence[str] = (node["infer"] or {}).get("event_dims", ())
    num_event = len(node["fn"].event_shape)
    event = list(named) or [f"{site}_dim_{index}" for index in range(num_event)]
    if len(event) != num_event:
        raise ValueError(
            f"site {site!r} has {num_event} event axes but infer=dims(...) names {list(named)}; "
            "name every event axis, or none"
        )
    return [plates[dim] for dim in sorted(plates)] + event


def scaled(log_prob: Tensor, site: Mapping[str, Any]) -> Tensor:
    """Log-densities under a site's mask, times the scale of its plates."""
    return scale_and_mask(log_prob, site["scale"], site["mask"])


def full_name(program: Program) -> str:
    """How a program is named in results."""
    named = program if inspect.isfunction(program) else type(program)
    return str(getattr(named, "__qualname__", named))


def without_observations(program: Program, inputs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a batch that condition no observation site, or that it cannot do without."""
    with torch.no_grad():
        sites = sample_sites(poutine.trace(program).get_trace(**inputs))
    needed = required_arguments(program)
    return {name: v for name, v in inputs.items() if name not in sites or name in needed}
