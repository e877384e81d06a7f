"""What was not observed: -1 in labels and masks, NaN in numbers; told apart and counted here."""

import xarray as xr

UNANNOTATED = -1


def known(observed: xr.DataArray) -> xr.DataArray:
    """Return which entries were observed: bool, of the dimensions given.

    Args:
        observed: Class indices, -1 where not annotated; or numbers as floats, NaN where not
            observed. Whole numbers that are no classes must be made floats first.
    """
    return observed != UNANNOTATED if observed.dtype.kind == "i" else observed.notnull()


def count_left_out(observed: xr.DataArray, *, empty: bool = False) -> dict[str, int]:
    """Count what was not observed, for the attributes of a result.

    Args:
        observed: What was observed (case, ...), as for `known`; or whether it was, bool.
        empty: Whether nothing need be observed at all.

    Returns:
        ``num_cases``, ``left_out`` and ``left_out_cases``, as the package says.

    Raises:
        ValueError: Nothing was observed.
    """
    seen = observed if observed.dtype.kind == "b" else known(observed)
    values = seen.transpose("case", ...).values
    per_case = values.reshape(len(values), -1).any(1)
    if not (empty or per_case.any()):
        raise ValueError(
            f"The observation {observed.name or ''} is NaN everywhere, or -1 (not annotated): "
            "there is nothing to compare with."
        )
    return {
        "num_cases": int(per_case.sum()),
        "left_out": int(values.size - values.sum()),
        "left_out_cases": int((~per_case).sum()),
    }
