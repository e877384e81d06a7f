"""What training leaves behind: ELBO, NLL and KL by step."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr


@dataclass
class History:
    """Figures of one member's run.

    Attributes:
        nll: Negative log-likelihood by step, nats per case.
        kl: KL divergence by step, nats per case.
        kl_weight: Weight of the KL by step.
        epoch: Epoch by step.
        extra: Further figures by step, by name, such as the bound of an objective.
        validation_nll: Held-out negative log-likelihood by epoch, nats per case.
        learning_rate: Of the first group of parameters by step; empty where nobody asks.
        kept: What was chosen by looking at validation: ``best_epoch``, ``stopped_by``.
    """

    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    kl_weight: list[float] = field(default_factory=list)
    epoch: list[int] = field(default_factory=list)
    extra: dict[str, list[float]] = field(default_factory=dict)
    validation_nll: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)

    def last(self) -> dict[str, float]:
        """Figures of the last step in nats per case: the bound that was trained, NLL and KL."""
        nll, kl = self.nll[-1], self.kl[-1]
        bound = self.extra.get("bound")
        first = {"bound": bound[-1]} if bound else {"elbo": -(nll + kl)}
        return {**first, "nll": nll, "kl": kl}

    def dataset(self) -> xr.Dataset:
        """The figures as named arrays."""
        nll, kl = np.asarray(self.nll), np.asarray(self.kl)
        data = xr.Dataset(
            {
                "elbo": ("step", -(nll + kl)),
                "nll": ("step", nll),
                "kl": ("step", kl),
                "kl_weight": ("step", np.asarray(self.kl_weight)),
            },
            coords={"step": np.arange(len(nll)), "epoch": ("step", np.asarray(self.epoch))},
        )
        for name, values in self.extra.items():
            data[name] = ("step", np.asarray(values))
        if self.learning_rate:
            data["learning_rate"] = ("step", np.asarray(self.learning_rate))
        if self.validation_nll:
            data["validation_nll"] = ("validation_epoch", np.asarray(self.validation_nll))
            data = data.assign_coords(validation_epoch=np.arange(len(self.validation_nll)))
        for name in ("elbo", "nll", "kl", "bound", "validation_nll", "gradient_norm"):
            if name in data:
                data[name].attrs["units"] = "nats per case"
        data["elbo"].attrs["note"] = "-(nll + kl), whatever kl_weight the loss used"
        return data.assign(self.kept)


def join_histories(histories: list[History], *, ensemble: bool) -> xr.Dataset:
    """One Dataset; members of an ensemble lie along ``chain``.

    Members that stopped earlier are NaN in the steps and epochs that they did not take.
    """
    if not ensemble:
        return histories[0].dataset()
    chains = xr.Dataset(coords={"chain": np.arange(len(histories))})
    longest = max(histories, key=lambda history: len(history.nll)).dataset()
    found = [history.dataset().drop_vars("epoch") for history in histories]
    sizes = {size: longest.coords[size] for size in ("step", "validation_epoch") if size in longest}
    joined = xr.concat(
        [one.reindex(sizes) for one in found],
        dim=chains["chain"],
        coords="minimal",
        compat="override",
    )
    return joined.assign_coords(epoch=longest["epoch"])
