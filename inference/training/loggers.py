"""Callbacks of ``fit`` that write every epoch where one looks: a table, or a service.

Figures are means over the steps of an epoch, in the units of the history, and the validation NLL.
Epochs are numbered as in the history, from 0. Members of an ensemble are told apart by a column, or
by ``member0/`` before the names. What was logged was read back, and was the history's, with
TensorBoard 2.21.0, MLflow 3.17.2 (a store in SQLite) and Weights & Biases 0.31.0 (offline).
"""

import csv
import importlib
import io
import os
from pathlib import Path
from typing import Any

import xarray as xr

from ppl_med.checks import a_path
from ppl_med.storage import write_text

PACKAGES = {"mlflow": "mlflow", "torch.utils.tensorboard": "tensorboard", "wandb": "wandb"}


def epoch_figures(history: xr.Dataset) -> list[dict[str, float]]:
    """Figures of every epoch so far, by name.

    Args:
        history: What a callback is given: of one member, with attributes ``member`` and ``epoch``.
    """
    by_step = [name for name in history.data_vars if history[name].dims == ("step",)]
    means = history[by_step].groupby("epoch").mean()
    scores = history.get("validation_nll")
    rows = []
    for position, epoch in enumerate(means["epoch"].values.tolist()):
        figures = {str(name): float(means[name][position]) for name in by_step}
        if scores is not None and position < scores.sizes["validation_epoch"]:
            figures["validation_nll"] = float(scores[position])
        rows.append({"epoch": epoch, **figures})
    return rows


class CsvLogger:
    """Writes ``member,epoch,elbo,nll,kl,...`` to a table, a row an epoch.

    The file is replaced after every epoch and always whole; a resumed run writes no epoch twice.

    Args:
        path: The file.

    Raises:
        ValueError: If that is no path.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = a_path("path", path)

    def on_epoch(self, history: xr.Dataset) -> None:
        """Write all epochs of the present member, and those of members before it."""
        member = int(history.attrs["member"])
        rows: list[dict[str, Any]] = []
        if member and self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if int(row["member"]) < member]
        rows += [{"member": member, **row} for row in epoch_figures(history)]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, text.getvalue(), "table")


class TensorBoardLogger:
    """Writes every epoch for TensorBoard (package ``tensorboard``).

    Args:
        folder: Where its event files go; look at them by ``tensorboard --logdir <folder>``.

    Raises:
        ImportError: If the package is missing.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._module = _needed("torch.utils.tensorboard", type(self).__name__)
        self.folder: Path = a_path("folder", folder)
        self._writer: Any = None

    def on_epoch(self, history: xr.Dataset) -> None:
        """Write the last epoch."""
        if self._writer is None:
            self._writer = self._module.SummaryWriter(str(self.folder))
        epoch, figures = _last(history)
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def on_end(self) -> None:
        """Close the file; another run of ``fit`` opens a new one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class MLflowLogger:
    """Logs every epoch to MLflow (package ``mlflow``).

    Inside ``with mlflow.start_run()`` to that run; else to one of its own, which ends with ``fit``.

    Args:
        run_name: Name of a run of its own.

    Raises:
        ImportError: If the package is missing.
    """

    def __init__(self, run_name: str | None = None) -> None:
        self._mlflow = _needed("mlflow", type(self).__name__)
        self.run_name, self._started = run_name, False

    def on_epoch(self, history: xr.Dataset) -> None:
        """Log the last epoch."""
        if self._mlflow.active_run() is None:
            self._mlflow.start_run(run_name=self.run_name)
            self._started = True
        epoch, figures = _last(history)
        self._mlflow.log_metrics(figures, step=epoch)

    def on_end(self) -> None:
        """End a run of its own."""
        if self._started:
            self._mlflow.end_run()
            self._started = False


class WandbLogger:
    """Logs every epoch to Weights & Biases (package ``wandb``).

    Args:
        project: Name of the project.
        options: Further arguments of ``wandb.init``, such as ``name`` or ``mode="offline"``.

    Raises:
        ImportError: If the package is missing.
    """

    def __init__(self, project: str, **options: Any) -> None:
        self._wandb = _needed("wandb", type(self).__name__)
        self.project, self.options = project, options
        self._run: Any = None

    def on_epoch(self, history: xr.Dataset) -> None:
        """Log the last epoch."""
        if self._run is None:
            self._run = self._wandb.init(project=self.project, **self.options)
        epoch, figures = _last(history)
        self._run.log({**figures, "epoch": epoch})

    def on_end(self) -> None:
        """End the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None


def _last(history: xr.Dataset) -> tuple[int, dict[str, float]]:
    """The last epoch and its figures, of an ensemble with the member before their names."""
    attrs = history.attrs
    before = f"member{attrs['member']}/" if attrs["members"] > 1 else ""
    figures = epoch_figures(history)[-1]
    epoch = int(figures.pop("epoch"))
    return epoch, {f"{before}{name}": value for name, value in figures.items()}


def _needed(module: str, who: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = PACKAGES[module]
        raise ImportError(
            f"{who} needs the package {package!r}, which is not installed: pip install {package}"
        ) from error
