"""The command line: ``ppl-med fit config.yaml``, or ``python -m ppl_med fit config.yaml``.

Every command calls the function of the same name in ``ppl_med.runs``, which does the work.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, UseAppendAction, arg

Set = Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="PATH=VALUE")]
Allow = Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="MODULE")]


def _changes(changes: tuple[str, ...], seed: int | None) -> list[str]:
    return [*changes, *([] if seed is None else [f"seed={seed}"])]


def fit(
    config: Positional[Path],
    /,
    out: Path | None = None,
    seed: int | None = None,
    set: Set = (),
    allow: Allow = (),
    resume: bool = False,
    quiet: bool = False,
) -> None:
    """Train what a YAML file describes, and save it as a run.

    Args:
        config: The file; `ppl-med check` tries one without training.
        out: Folder of the run, by default runs/<name of the file>; an earlier run in it is moved
            aside.
        seed: Replaces the file's seed.
        set: Replaces a setting of the file, such as fit.epochs=3; may be repeated.
        allow: A Python module of your own that the file may name; may be repeated.
        resume: Go on with the run in the folder, as if it had never been interrupted.
        quiet: Show no progress bar.
    """
    from ppl_med import runs

    folder = Path("runs") / config.stem if out is None else out
    changes = _changes(set, seed)
    run = runs.fit(config, folder, changes=changes, allow=allow, resume=resume, progress=not quiet)
    history = run.history
    if history is not None:
        last = history.where(history["epoch"] == history["epoch"].max(), drop=True)
        means = ", ".join(
            f"{name} {float(last[name].mean()):.4g}" for name in ("elbo", "nll", "kl")
        )
        print(f"Last epoch, nats per case: {means}")
    print(f"Wrote {folder}; next: ppl-med predict {folder}")


def predict(
    run: Positional[Path],
    /,
    split: str = "test",
    out: Path | None = None,
    set: Set = (),
    allow: Allow = (),
    resume: bool = False,
    quiet: bool = False,
) -> None:
    """Draw the posterior of a run on its test data, or on other data by --set data.test....

    Args:
        run: Folder of a run.
        split: train, validation, calibration or test.
        out: File *.nc or store *.zarr to write, by default posterior.nc in the folder.
        set: Replaces a setting of the file, such as fit.epochs=3; may be repeated.
        allow: A Python module of your own that the file may name; may be repeated.
        resume: Go on with an interrupted *.zarr.
        quiet: Show no progress bar.
    """
    from ppl_med import runs

    out = run / ("posterior.nc" if split == "test" else f"{split}.nc") if out is None else out
    tree = runs.predict(
        run, split=split, out=out, changes=set, allow=allow, resume=resume, progress=not quiet
    )
    sizes = ", ".join(
        f"{tree['posterior'].sizes.get(name, 0)} {name}s" for name in ("draw", "case")
    )
    print(f"Wrote {out}: {sizes}; next: ppl-med report {out}")


def report(
    tree: Positional[Path],
    /,
    out: Path | None = None,
    title: str = "",
    calibration: Path | None = None,
    alpha: float = 0.1,
) -> None:
    """Write one self-contained HTML page about a posterior.

    Args:
        tree: posterior.nc, or the folder of a run.
        out: The page, by default report.html beside it.
        title: Heading of the page.
        calibration: For prediction sets: the posterior of other labelled cases, such as
            calibration.nc.
        alpha: Share of prediction sets that may miss the true class.
    """
    from ppl_med import runs

    page = runs.report(tree, out, title=title, calibration=calibration, alpha=alpha)
    print(f"Wrote {page}")


def check(
    config: Positional[Path], /, seed: int | None = None, set: Set = (), allow: Allow = ()
) -> None:
    """Try a YAML file without training: names, data, shapes, contracts of model and guide.

    Args:
        config: The file.
        seed: Replaces the file's seed.
        set: Replaces a setting of the file, such as fit.epochs=3; may be repeated.
        allow: A Python module of your own that the file may name; may be repeated.
    """
    from ppl_med import runs

    print(runs.check(config, changes=_changes(set, seed), allow=allow))


def export(
    run: Positional[Path], bundle: Positional[Path], /, as_given: bool = False, allow: Allow = ()
) -> None:
    """Write a run as a MONAI Bundle with a model card.

    Args:
        run: Folder of a run; predict its test data first, so that the card has figures.
        bundle: Folder to write.
        as_given: Also where the bundle cannot prepare images as the run's were; whoever gives them
            then has to.
        allow: A Python module of your own that the file may name; may be repeated.
    """
    from ppl_med import runs

    print(f"Wrote {runs.export(run, bundle, as_given=as_given, allow=allow)}")


COMMANDS: dict[str, Callable[..., None]] = {
    "check": check,
    "fit": fit,
    "predict": predict,
    "report": report,
    "export": export,
}


def main(arguments: list[str] | None = None) -> None:
    """Run a command; errors are one line, and exit with 1."""
    if "" not in sys.path:  # modules that --allow names lie where the user stands
        sys.path.insert(0, "")
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="ppl-med",
            description=(
                "Bayesian neural networks for medical images, described in a YAML file: check it, "
                "fit it, predict, report, export."
            ),
            args=arguments,
            config=(OmitArgPrefixes, FlagCreatePairsOff),
        )
    except (ArithmeticError, AssertionError, ImportError, OSError, TypeError, ValueError) as error:
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
        sys.exit(f"ppl-med: {error}{notes}")


if __name__ == "__main__":
    main()
