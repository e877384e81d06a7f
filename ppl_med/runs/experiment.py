"""A run from its description: trained, predicted, tried without training, reported."""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor

import ppl_med.inference
from ppl_med import storage
from ppl_med.checks import a_path, choice
from ppl_med.inference import process_group
from ppl_med.inference.data_digest import data_digest
from ppl_med.inference.guides.ensemble import members_of
from ppl_med.plots.report import report_tree
from ppl_med.programs.sites import select_arguments
from ppl_med.runs.components import Builder
from ppl_med.runs.configuration import SPLITS, Config, first_difference, read_config
from ppl_med.runs.run_folder import (
    CHECKPOINT,
    CONFIG,
    HISTORY,
    POSTERIOR,
    RECORD,
    Run,
    classes_of,
    load,
    write,
)
from ppl_med.runs.run_parts import build_data, build_programs, first_of, outline_of
from ppl_med.runs.yaml_files import as_yaml
from ppl_med.testing import check_guide, check_program
from ppl_med.weights import find_random_weights

# Sections that say how long or how a run goes on; fit itself knows which of them may change.
_MAY_CHANGE = ("fit", "predict", "card")


def fit(
    config: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    changes: Sequence[str] = (),
    allow: Iterable[str] = (),
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Train what a file describes, and save it.

    Processes of ``torchrun`` train together, as in ``ppl_med.inference.fit``, and rank 0 writes.

    Args:
        config: A YAML file, or its content.
        out: Folder of the run; an earlier run in it is moved aside.
        changes: Settings that replace the file's, such as ``"fit.epochs=3"``.
        allow: Modules of the user's own that the file may name.
        resume: Go on with the run in ``out``; the result equals the uninterrupted run's.
        progress: Show a bar.

    Returns:
        The run, saved in ``out``; ``fit`` with the config.yaml there gives it again, bit for bit.

    Raises:
        ValueError: On a file that does not fit, before any training; on another file than the one
            that a run to resume was begun with.
    """
    content, allow = read_config(config, changes), tuple(allow)
    out = a_path("out", out)
    if resume:
        _check_same(content, out)
    data = build_data(content, allow, only=("train", "validation"))
    train = data.splits["train"]
    first = first_of(content, train)
    model, guide = build_programs(content, allow, example=first)
    arguments = Builder(allow, folder=out)(dict(content.get("fit", {})), "fit")

    def begin() -> Path:
        folder = storage.open_run(out, resume=resume)
        storage.write_text(folder / CONFIG, as_yaml(content), "config")
        return folder

    folder = process_group.on_rank_0(begin)
    started = time.time()
    history = ppl_med.inference.fit(
        model,
        guide,
        train,
        seed=content["seed"],
        validation=data.splits.get("validation"),
        checkpoint=folder / CHECKPOINT,
        resume=resume,
        progress=progress,
        **arguments,
    )
    example = select_arguments(model, first)
    run = Run(
        model,
        guide,
        folder,
        classes=classes_of(model),
        loc=data.loc,
        scale=data.scale,
        unit=data.unit,
        config=content,
        history=history,
        example=outline_of(example),
        provenance={
            "seconds": round(time.time() - started, 1),
            "device": str(_parameters(model, guide)[0].device),
            "threads": torch.get_num_threads(),
            "data_sha256": data_digest(train, example),
            "training_cases": _count(train),
        },
    )
    run.provenance = process_group.on_rank_0(lambda: write(run))
    return run


def predict(
    folder: str | Path,
    *,
    split: str = "test",
    out: str | Path | None = None,
    changes: Sequence[str] = (),
    allow: Iterable[str] = (),
    resume: bool = False,
    progress: bool = True,
) -> xr.DataTree:
    """Draw a saved run's posterior on a split of its data.

    Args:
        folder: Folder of the run.
        split: ``"test"``, or another of the description's.
        out: File or store to write, ``*.nc`` or ``*.zarr``; by default ``posterior.nc`` in the
            folder for the test data, ``<split>.nc`` for another split.
        changes: Settings that replace the file's, such as ``"predict.draws=64"`` or
            ``"data.test.csv=new.csv"``; those of the model would not fit the weights.
        allow: Modules of the user's own that the run may name.
        resume: Go on with an interrupted ``*.zarr``.
        progress: Show a bar.

    Returns:
        The tree of ``ppl_med.inference.predict``.

    Raises:
        ValueError: On settings or data that do not fit.
        FileExistsError: If the result exists.
    """
    choice("split", split, SPLITS)
    run = load(folder, allow=allow)
    content = read_config(run.config, changes)
    changed = first_difference(run.config, content, free=("data", "predict"))
    if changed is not None:
        raise ValueError(f"set changes {changed}, which was trained; change data or predict only")
    known = None if run.loc is None or run.scale is None else (run.loc, run.scale)
    data = build_data(content, allow, only=(split,), normalization=known, training=False)
    batches = data.splits.get(split)
    if batches is None:
        raise ValueError(f"config.data has no {split}; add it, or give another split")
    if out is None:
        out = Path(folder) / (POSTERIOR if split == "test" else f"{split}.nc")
    arguments = Builder(allow)(dict(content.get("predict", {})), "predict")
    return ppl_med.inference.predict(
        run.model,
        run.guide,
        batches,
        seed=content["seed"],
        store=out,
        resume=resume,
        progress=progress,
        **arguments,
    )


def check(
    config: str | Path | Mapping[str, Any],
    *,
    changes: Sequence[str] = (),
    allow: Iterable[str] = (),
) -> str:
    """Try a description without training: names, shapes, and the contracts of both programs.

    Args:
        config: A YAML file, or its content.
        changes: Settings that replace the file's.
        allow: Modules of the user's own that the file may name.

    Returns:
        What it is: batches of every split, parameters, sites.

    Raises:
        ValueError: On a file, data or arguments that do not fit.
        AssertionError: If model or guide breaks its contract, with every violation and its fix.
    """
    content, allow = read_config(config, changes), tuple(allow)
    data = build_data(content, allow)
    lines = []
    for split, batches in data.splits.items():
        first = first_of(content, batches)
        shapes = ", ".join(f"{name} {_shape(value)}" for name, value in first.items())
        lines.append(f"{split}: {_count(batches)} cases in {len(batches)} batches of {shapes}")
    if data.loc is not None:
        lines.append(f"images: loc {_short(data.loc)}, scale {_short(data.scale)}")
    train = first_of(content, data.splits["train"])
    model, guide = build_programs(content, allow, example=train)
    Builder(allow)(dict(content.get("fit", {})), "fit")
    Builder(allow)(dict(content.get("predict", {})), "predict")
    batch = {name: value[:4] for name, value in select_arguments(model, train).items()}
    for one, other in members_of(model, guide)[:1]:
        check_program(one, batch)
        check_guide(one, other, batch)
    weights = find_random_weights([model]).values()
    lines.append(f"model: {type(model).__name__}, guide: {type(guide).__name__}")
    lines.append(f"random weights: {sum(one.layout.num_weights for one in weights)}")
    lines.append("model and guide keep their contracts")
    return "\n".join(lines)


def report(
    tree: str | Path,
    out: str | Path | None = None,
    *,
    title: str = "",
    notes: Sequence[str] = (),
    calibration: str | Path | None = None,
    alpha: float = 0.1,
) -> Path:
    """Write the report of a predicted tree.

    Args:
        tree: ``posterior.nc`` or another result of ``predict``, or the folder of a run.
        out: The page to write; ``report.html`` beside the tree by default.
        title: Heading; the name of the run by default.
        notes: Paragraphs of plain text, shown first.
        calibration: For prediction sets: what ``predict`` made of a split that neither training nor
            the test data holds, such as ``calibration.nc``.
        alpha: Share of prediction sets that may miss the true class.

    Returns:
        The path written.
    """
    path = a_path("tree", tree)
    path = path / POSTERIOR if (path / RECORD).exists() else path
    found = _tree_of(path, "posterior.nc")
    history = path.parent / HISTORY
    return report_tree(
        found,
        path.with_name("report.html") if out is None else out,
        title=title or f"{found.attrs.get('model', 'Posterior')} in {path.parent.name or path}",
        history=storage.load(history) if history.exists() else None,  # type: ignore[arg-type]
        notes=notes,
        calibration=None if calibration is None else _tree_of(calibration, "calibration.nc"),
        alpha=alpha,
    )


def _tree_of(path: str | Path, name: str) -> xr.DataTree:
    found = storage.load(a_path("tree", path))
    if not isinstance(found, xr.DataTree):
        raise ValueError(f"{path} is no tree of predict; give {name}")
    return found


def _check_same(content: Config, out: Path) -> None:
    path = out / CONFIG
    if path.exists():
        changed = first_difference(read_config(path), content, free=_MAY_CHANGE)
        if changed is not None:
            raise ValueError(
                f"config.{changed} is another than the run in {out} was begun with; resume with "
                "the same file, or give another out"
            )


def _parameters(model: Any, guide: Any) -> list[Tensor]:
    parts = [part for pair in members_of(model, guide) for part in pair]
    return list({id(p): p for part in parts for p in part.parameters()}.values())


def _count(batches: Any) -> int | None:
    known = getattr(batches, "num_cases", None)
    if known is not None:
        return int(known)
    data = getattr(batches, "dataset", None)
    try:
        return len(data if data is not None else batches)
    except TypeError:
        return None


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"({len(value)},)"


def _short(numbers: Any) -> str:
    return ", ".join(f"{one:.4g}" for one in numbers)
