"""Predicted and observed numbers, one per case, of trees that may lack some of them.

    loc or mean           (chain, draw, case)          posterior, of the distribution under a draw
    scale, variance       (chain, draw, case)          posterior, of the distribution under a draw
    quantile              (chain, draw, case, level)   posterior, of models that predict quantiles
    <site>                (chain, draw, case)          posterior_predictive
    <site>                (case)                       observed_data, NaN where not observed

All but the variance are in the unit of the observation. For maps of numbers see `numbers`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from ppl_med.analysis.tree.blocks import Part, join_blocks, split_blocks
from ppl_med.analysis.tree.cases import check_cases
from ppl_med.analysis.tree.distinct_draws import drop_copies
from ppl_med.analysis.tree.groups import find_group
from ppl_med.analysis.tree.numbers import DRAWS, find_site
from ppl_med.axes import SAMPLES

_PARAMETERS = ("loc", "mean", "scale", "variance", "quantile")


@dataclass(frozen=True)
class CaseNumbers:
    """What a tree predicts and observed, not yet read; see `open_case_numbers`.

    Args:
        site: Name of the observed numbers.
        predicted: Parameters by name, and the values drawn as ``posterior_predictive``.
        observation: What was observed; None where nothing was.
    """

    site: str
    predicted: Mapping[str, xr.DataArray]
    observation: xr.DataArray | None

    def isel(self, cases: slice | np.ndarray) -> "CaseNumbers":
        """Return some of the cases."""
        kept = {n: a.isel(case=cases, missing_dims="ignore") for n, a in self.predicted.items()}
        observation = self.observation
        if observation is not None:
            observation = observation.isel(case=cases, missing_dims="ignore")
        return replace(self, predicted=kept, observation=observation)

    def map(self, function: Callable[["CaseNumbers"], Part]) -> Part:
        """Apply a function to runs of cases whose draws fit in memory; put its results together."""
        arrays = [array for array in self.predicted.values() if "case" in array.dims]
        if not arrays or not arrays[0].sizes["case"]:
            return function(self)  # which says what is missing
        cases = arrays[0].sizes["case"]
        per_case = sum(array.size for array in arrays) // cases
        return join_blocks(
            (block, function(self.isel(block["case"])))
            for block in split_blocks({"case": cases}, per_case)
        )

    def find(self, name: str, why: str = "this") -> xr.DataArray:
        """Return what is predicted by a name (chain, draw, case[, level]), not yet read.

        Args:
            name: Name of a parameter, or "posterior_predictive" for the values drawn.
            why: What needs it, for the error.

        Raises:
            ValueError: It is missing, empty, or of other dimensions.
        """
        path = f"{DRAWS}/{self.site}" if name == DRAWS else f"posterior/{name}"
        if name not in self.predicted:
            raise ValueError(f"The {path.split('/')[0]} holds no {name}, which {why} needs.")
        array = self.predicted[name]
        wanted = (*SAMPLES, "case", *(("level",) if name == "quantile" else ()))
        if set(array.dims) != set(wanted):
            raise ValueError(
                f"{path} has dimensions {array.dims}; expected {wanted}: one number per case."
            )
        if not array.size:
            raise ValueError(f"{path} is empty: {dict(array.sizes)}.")
        return array.transpose(*wanted)

    def read(self, name: str, why: str = "this") -> xr.DataArray:
        """Return what `find` finds, float64, in memory.

        Raises:
            ValueError: As for `find`, or values that are not finite.
        """
        array = self.find(name, why).astype(np.float64).load()
        if not np.isfinite(array.values).all():
            raise ValueError(f"{name} holds NaN or infinite values; drop those cases or draws.")
        return array

    def observed(self) -> xr.DataArray | None:
        """Return the observed numbers (case), float64, NaN where not observed, if there are any.

        Raises:
            ValueError: More than one number per case, other cases, or infinite values.
        """
        array = self.observation
        if array is None:
            return None
        if array.dims != ("case",):
            raise ValueError(
                f"observed {self.site} has dimensions {array.dims}; expected ('case',)."
            )
        for name, other in self.predicted.items():
            if "case" in other.dims:
                check_cases(array, other, f"observed {self.site}", name)
        array = array.astype(np.float64).load()
        if np.isinf(array.values).any():
            raise ValueError(f"observed {self.site} is infinite somewhere; use NaN.")
        return array

    def required(self) -> xr.DataArray:
        """Return the observed numbers (case), as `observed`, which must be there.

        Raises:
            ValueError: As for `observed`, or there are none.
        """
        observed = self.observed()
        if observed is None:
            raise ValueError(f"tree has no observed_data/{self.site}; observed numbers are needed.")
        return observed

    def quantiles(self, levels: np.ndarray) -> xr.DataArray:
        """Return quantiles of the number under every draw, or of all draws together.

        Args:
            levels: Probabilities.

        Returns:
            (chain, draw, case, quantile) where the model predicts quantiles; else (case,
            quantile), those of the values drawn.

        Raises:
            ValueError: Neither is there, or the model predicts other levels.
        """
        if "quantile" in self.predicted:
            own = self.read("quantile").rename(level="quantile")
            known = own["quantile"].values if "quantile" in own.coords else np.array([])
            near = [np.flatnonzero(np.isclose(known, one, rtol=0, atol=1e-9)) for one in levels]
            if any(len(index) != 1 for index in near):
                raise ValueError(
                    f"posterior/quantile has the levels {known.tolist()}; alpha needs "
                    f"{levels.tolist()}. Choose alpha to match."
                )
            return own.isel(quantile=[int(index[0]) for index in near])
        if DRAWS not in self.predicted:
            raise ValueError(
                f"tree has neither posterior/quantile nor posterior_predictive/{self.site}; "
                "quantile intervals need one of them. Use method='absolute' or 'normalised'."
            )
        draws = self.read(DRAWS)
        if draws.sizes["chain"] * draws.sizes["draw"] < 2:
            raise ValueError("Quantiles of posterior_predictive need more than one draw.")
        return draws.quantile(levels, SAMPLES).transpose("case", "quantile")


def open_case_numbers(
    tree: object, site: str | None = None, *, copies: bool = False
) -> CaseNumbers:
    """Find the numbers of a tree, without reading them.

    Args:
        tree: The tree of `predict`, with observations or not.
        site: Name of the observed numbers; None takes the only one, as `find_site` says.
        copies: Keep draws that are copies of others.

    Raises:
        TypeError: ``tree`` is no DataTree.
        ValueError: None or several, and ``site`` does not choose.
    """
    name, observation, drawn = find_site(tree, site)
    posterior = find_group(tree, "posterior")
    names = [parameter for parameter in _PARAMETERS if parameter in posterior]
    group = posterior[names] if copies else drop_copies(posterior[names])
    predicted = {str(n): array for n, array in group.items()}
    if drawn is not None:
        predicted[DRAWS] = drawn if copies else drop_copies(drawn)
    return CaseNumbers(name, predicted, observation)
