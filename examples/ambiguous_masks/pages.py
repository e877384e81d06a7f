"""Parts of the reports that both studies write."""

from collections.abc import Mapping, Sequence

import xarray as xr

from ambiguous_masks.training import Run
from ppl_med.plots import segmentation as figures
from ppl_med.plots.report import Section, paragraph, picture, table
from ppl_med.plots.training_curves import elbo


def tables(head: list[str], lines: list[list[str]], cuts: Sequence[slice]) -> str:
    """A table as HTML, its columns in several parts, each led by the first column."""
    both = [head, *([text.replace(" ± ", "\u00a0±\u00a0") for text in line] for line in lines)]
    parts = [[[line[0], *line[cut]] for line in both] for cut in cuts]
    # A last line that says nothing about these columns is left out.
    shown = [part if any(part[-1][1:]) else part[:-1] for part in parts]
    return "".join(table(part[0], part[1:]) for part in shown)


def ged_section(
    result: xr.Dataset, published: Mapping[str, Sequence[float]], source: str
) -> Section:
    """GED² against the number of samples, beside published figures of 1, 4, 8 and 16.

    Args:
        result: ``ged``, ``ged_se``, ``floor`` (model, num_samples).
        published: Figures by model.
        source: Where they stand.
    """
    others = xr.Dataset(
        {"ged": (("model", "num_samples"), list(published.values()))},
        coords={"model": list(published), "num_samples": [1, 4, 8, 16]},
        attrs={"source": source},
    )
    values = result[["ged", "ged_se"]].assign(floor=result["floor"].max("model"))
    return Section(
        "ged",
        "Energy distance and number of samples",
        paragraph("A good model lies near the dashed line for every number of samples.")
        + picture(figures.ged_by_samples(values, others), "GED² by number of samples."),
    )


def training_section(name: str, one: Run) -> Section:
    """Training curves of a model, or of every member of an ensemble."""
    return Section(
        f"training-{name.replace('_', '-')}",
        f"{name}: training",
        paragraph("All curves should have levelled off at the right end.")
        + picture(elbo(one.history), f"ELBO, NLL and KL of {name} in nats per case."),
    )
