"""The folder of a run: everything that is needed to have its posterior again, without its script.

    config.yaml           what the run is made of; ``ppl-med fit config.yaml`` makes it again
    weights.safetensors   parameters and buffers of model and guide
    run.json              classes, normalization of images, shapes, versions, digest of the weights
    history.nc            ELBO, NLL and KL by step
    checkpoint.pt         what an interrupted or extended training goes on from
    posterior.nc          what ``ppl-med predict`` wrote

Nothing in it is code, and nothing is unpickled: ``load`` builds what config.yaml names, if
``allowed_names`` allows it, and copies the weights into it.
"""

import datetime
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import xarray as xr

import ppl_med
from ppl_med import storage
from ppl_med.checks import a_path, choice
from ppl_med.inference import checkpoint
from ppl_med.inference.guides.ensemble import members_of
from ppl_med.programs.sites import select_arguments
from ppl_med.runs.configuration import Config, read_config
from ppl_med.runs.run_parts import build_programs, empty_example, outline_of
from ppl_med.runs.yaml_files import as_yaml

FORMAT = 1
CONFIG, WEIGHTS, RECORD, HISTORY = "config.yaml", "weights.safetensors", "run.json", "history.nc"
CHECKPOINT, POSTERIOR = "checkpoint.pt", "posterior.nc"


@dataclass
class Run:
    """A trained posterior and what belongs to it.

    Attributes:
        model: The model, with its trained parameters.
        guide: The guide, or an ``Ensemble``.
        folder: Where it is saved.
        classes: Names of the classes; empty for numbers.
        loc: Subtracted from images, one number a channel; None where the run does not know.
        scale: Images are divided by it.
        unit: ``"uint8"`` where whole grey levels were divided by 255 before, ``"float"`` elsewhere.
        config: What it is made of.
        history: What ``fit`` returned; None for a run that was saved without.
        example: Shapes and types of the model's arguments, two cases.
        provenance: Versions, date, digests.
    """

    model: Any
    guide: Any
    folder: Path
    classes: tuple[str, ...] = ()
    loc: list[float] | None = None
    scale: list[float] | None = None
    unit: str = "float"
    config: Config = field(default_factory=dict)
    history: xr.Dataset | None = None
    example: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def save(
    folder: str | Path,
    model: Any,
    guide: Any,
    *,
    config: str | Path | Mapping[str, Any],
    loc: Sequence[float] | None = None,
    scale: Sequence[float] | None = None,
    unit: Literal["uint8", "float"] = "float",
    example: Mapping[str, Any] | None = None,
    history: xr.Dataset | None = None,
    allow: Iterable[str] = (),
    provenance: Mapping[str, Any] | None = None,
) -> Run:
    """Save a trained pair with the description that builds it again.

    Args:
        folder: Where; an earlier run in it is replaced, file by file.
        model: The trained model.
        guide: Its guide.
        config: What they are made of: ``net``, ``prior``, ``model`` and ``guide`` as in a file for
            ``ppl-med fit``; data and fit are optional.
        loc: Subtracted from the images before, one number a channel.
        scale: Images were divided by it.
        unit: ``"uint8"`` where whole grey levels were divided by 255 before that, as ``Batches``
            does.
        example: A batch, whose shapes are kept; guides whose parameters appear on a first call
            need it.
        history: What ``fit`` returned.
        allow: Modules of the user's own that the description names.
        provenance: Anything else to keep, as plain data.

    Returns:
        The run, which ``load`` reads.

    Raises:
        ValueError: If the description builds another model or guide than these.
        OSError: If it cannot be written.
    """
    content = read_config(config)
    run = Run(
        model,
        guide,
        a_path("folder", folder),
        classes=classes_of(model),
        loc=None if loc is None else [float(one) for one in loc],
        scale=None if scale is None else [float(one) for one in scale],
        unit=choice("unit", unit, ("uint8", "float")),
        config=content,
        history=history,
        example={} if example is None else outline_of(select_arguments(model, example)),
        provenance=dict(provenance or {}),
    )
    _check_builds(run, allow)
    write(run)
    return run


def write(run: Run) -> dict[str, Any]:
    """Write a run to its folder; return its provenance, with what it consists of, and when."""
    folder = run.folder
    run.provenance |= {
        "parameters_sha256": checkpoint.digest(members_of(run.model, run.guide)),
        "saved": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "ppl_med": ppl_med.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "pyro-ppl", "monai")},
    }
    kept = ("classes", "loc", "scale", "unit", "example", "provenance")
    record = {"format": FORMAT} | {name: getattr(run, name) for name in kept}
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_text(folder / CONFIG, as_yaml(run.config), "config")
    checkpoint.save(folder / WEIGHTS, run.model, run.guide)
    if run.history is not None:
        storage.save(run.history, folder / HISTORY)
    # Last, so that a folder with a record is whole.
    storage.write_text(folder / RECORD, json.dumps(record, indent=1) + "\n", "record")
    return run.provenance


def load(folder: str | Path, *, allow: Iterable[str] = ()) -> Run:
    """Build a saved run's model and guide and fill them with what was learned.

    Args:
        folder: Folder of the run.
        allow: Modules of the user's own that it may name.

    Returns:
        The run, in evaluation mode.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, or of another run, or names what is not allowed.
    """
    folder = a_path("folder", folder)
    files = {name: folder / name for name in (CONFIG, WEIGHTS, RECORD, HISTORY)}
    return load_files(folder, files, allow)


def load_files(folder: Path, files: Mapping[str, Path], allow: Iterable[str]) -> Run:
    """Load a run from its files, wherever in the folder they lie; see ``load``."""
    config, weights, record = files[CONFIG], files[WEIGHTS], files[RECORD]
    if not record.is_file():
        raise FileNotFoundError(
            f"{folder} holds no finished run: there is no {record.name}; train it with ppl-med "
            "fit, or save it with ppl_med.runs.save"
        )
    content, kept = read_config(config), _read_record(record)
    example = empty_example(kept["example"]) if kept["example"] else None
    model, guide = build_programs(content, allow, example=example, trained=True)
    checkpoint.load(weights, model, guide, example=example if _is_lazy(guide) else None)
    pairs = members_of(model, guide)
    if checkpoint.digest(pairs) != kept["provenance"]["parameters_sha256"]:
        raise ValueError(
            f"{weights} holds other parameters than {record} speaks of: the files are of two runs; "
            "take both from one"
        )
    for one in (part for pair in pairs for part in pair):
        one.eval()
    history = files[HISTORY]
    return Run(
        model,
        guide,
        folder,
        classes=tuple(kept["classes"]),
        loc=kept["loc"],
        scale=kept["scale"],
        unit=kept["unit"],
        config=content,
        history=storage.load(history) if history.exists() else None,  # type: ignore[arg-type]
        example=kept["example"],
        provenance=kept["provenance"],
    )


def classes_of(model: Any) -> tuple[str, ...]:
    """Names of a model's classes, or nothing."""
    names = dict(getattr(model, "coords", {}) or {}).get("class", ())
    return tuple(str(name) for name in names)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        names = ("classes", "loc", "scale", "unit", "example", "provenance")
        found = {name: kept[name] for name in names}
        found["provenance"]["parameters_sha256"]
        known = kept["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    if not known:
        raise ValueError(f"{path} is of another version of ppl_med (format {FORMAT} expected)")
    return found


def _check_builds(run: Run, allow: Iterable[str]) -> None:
    """Raise a ValueError where a description builds something else than its run holds."""
    example = empty_example(run.example) if run.example else None
    built = members_of(*build_programs(run.config, allow, example=example, trained=True))
    pairs = members_of(run.model, run.guide)
    if _is_lazy(run.guide):
        return
    fingerprints = [checkpoint.fingerprint(*pair) for pair in pairs]
    try:
        given = {"states": pairs, "fingerprints": fingerprints}
        checkpoint.check_members("of model and guide", given, built)
        ours, theirs = ([checkpoint.settings(one) for one, _ in group] for group in (pairs, built))
        if ours != theirs:
            raise ValueError(f"settings are {ours[0]!r} here and {theirs[0]!r} by config")
    except ValueError as error:
        raise ValueError(f"config describes another model or guide than these: {error}") from None


def _is_lazy(guide: Any) -> bool:
    """Whether a guide makes its parameters on its first call, as Pyro's AutoGuides do."""
    return type(guide).__module__.startswith("pyro.infer.autoguide")
