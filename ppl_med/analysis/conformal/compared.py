"""What of calibration and test cases is compared: outputs, features of layers, whose they are.

A calibration keeps of its cases

    features          (case, feature)         outputs: probabilities, or where an interval lies
    feature:<layer>   (case, unit:<layer>)    features: mean over draws, chains side by side
    case_unit         (case)                  patients, where they are known
    case_group        (case)                  groups that have thresholds of their own

and, where there are features, which functions they are of (attributes ``same_<name>``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import xarray as xr

from ppl_med.analysis.tree import functions_of, mean_features, open_layers, unit_names

_LAYER = "feature:"
_SAME = "same_"


@dataclass(frozen=True)
class Compared:
    """Cases as the tests of shift see them.

    Args:
        outputs: (case, output).
        features: By layer (case, unit).
        units: Patients (case,); None where every case is for itself.
        unit: What the units are: "case", a column such as "patient", or "array".
        groups: Groups that are compared one by one (case,); None for one.
        functions: What tells which functions the features are of.
    """

    outputs: np.ndarray
    features: dict[str, np.ndarray] = field(default_factory=dict)
    units: np.ndarray | None = None
    unit: str = "case"
    groups: np.ndarray | None = None
    functions: dict[str, str] = field(default_factory=dict)

    def isel(self, rows: np.ndarray) -> "Compared":
        """Return some of the cases."""
        return replace(
            self,
            outputs=self.outputs[rows],
            features={name: values[rows] for name, values in self.features.items()},
            units=None if self.units is None else self.units[rows],
            groups=None if self.groups is None else self.groups[rows],
        )

    def with_output(self, values: np.ndarray) -> "Compared":
        """Return them with one more output (case,)."""
        return replace(self, outputs=np.column_stack([self.outputs, values]))

    def stored(self) -> xr.Dataset:
        """Return what a calibration keeps of them."""
        result = xr.Dataset({"features": (("case", "feature"), self.outputs)})
        for name, values in self.features.items():
            result[_LAYER + name] = (("case", f"unit:{name}"), values)
        if self.units is not None:
            result["case_unit"] = ("case", self.units.astype(str))
        same = (
            {_SAME + name: value for name, value in self.functions.items()} if self.features else {}
        )
        return result.assign_attrs(unit=self.unit, **same)

    def check_like(self, calibration: "Compared") -> None:
        """Raise unless features are of the same layers and functions as those of a calibration.

        Raises:
            ValueError: Other layers, units, parameters or seed.
        """
        for name, values in calibration.features.items():
            own = self.features.get(name)
            if own is None or own.shape[1] != values.shape[1]:
                found = sorted(self.features) if own is None else f"{own.shape[1]} units of it"
                raise ValueError(
                    f"The calibration knows features of {name!r}, {values.shape[1]} units; the "
                    f"test tree has {found}. Predict both with the same guide, draws and keep."
                )
        for name in calibration.functions.keys() & self.functions.keys():
            if calibration.functions[name] != self.functions[name]:
                raise ValueError(
                    f"Calibration and test cases were predicted with another {name}: their "
                    "features are not of the same functions. Predict both with the same guide, "
                    "draws and seed."
                )


def read(
    tree: object, outputs: np.ndarray, array: xr.DataArray, group: str | xr.DataArray | None
) -> Compared:
    """Read what is compared off a tree.

    Args:
        tree: The tree of `predict`.
        outputs: (case, output).
        array: What the cases must agree with.
        group: Units as for `ppl_med.analysis.tree.case_units`.

    Raises:
        TypeError, ValueError: Malformed units, or features that are not finite.
    """
    units, kind = unit_names(tree, group, array)
    found = replace(read_layers(tree, open_layers(tree)), outputs=outputs, unit=kind)
    return found if kind == "case" else replace(found, units=units)


def read_layers(tree: object, layers: Mapping[str, xr.DataArray]) -> Compared:
    """Read the mean features of some layers of a tree, and no outputs."""
    features = {name: mean_features(layer).astype(np.float32) for name, layer in layers.items()}
    # rounded as they are stored: calibration and test cases alike
    number = len(next(iter(features.values()))) if features else 0
    functions = functions_of(tree) if isinstance(tree, xr.DataTree) else {}
    return Compared(np.zeros((number, 0)), features, functions=functions)


def read_like(
    calibration: xr.Dataset,
    tree: object,
    outputs: np.ndarray,
    array: xr.DataArray,
    group: xr.DataArray | None,
) -> Compared:
    """Read the same of test cases; units are those that the calibration knows.

    Raises:
        TypeError, ValueError: As `read`; units given to one side only.
    """
    kind = calibration.attrs.get("unit", "case")
    if (kind == "array") != (group is not None) and kind in ("array", "case"):
        raise ValueError(
            "group must be given here where the calibration was given an array of groups, and may "
            f"be given where it knows patients; it was calibrated by {kind}."
        )
    return read(tree, outputs, array, kind if group is None else group)


def of_calibration(calibration: xr.Dataset) -> Compared:
    """Return what a calibration keeps of its cases."""
    layers = [str(name) for name in calibration.data_vars if str(name).startswith(_LAYER)]
    same = {
        str(name).removeprefix(_SAME): str(value)
        for name, value in calibration.attrs.items()
        if str(name).startswith(_SAME)
    }
    return Compared(
        calibration["features"].values,
        {name.removeprefix(_LAYER): calibration[name].values for name in layers},
        calibration["case_unit"].values.astype(str) if "case_unit" in calibration else None,
        str(calibration.attrs.get("unit", "case")),
        calibration["case_group"].values if "case_group" in calibration else None,
        same,
    )
