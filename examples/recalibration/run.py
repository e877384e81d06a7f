"""The study from end to end."""

import itertools
import warnings

import xarray as xr

from ppl_med import storage
from ppl_med.analysis import calibration, conformal, scoring
from ppl_med.analysis.conformal.exchangeability import FALSE_ALARM
from ppl_med.plots import calibration_curves, prediction_sets
from ppl_med.plots.report import Section, paragraph, picture, write_report
from ppl_med.plots.report import table as html_table
from recalibration.figures import FIGURES, GAPS, SETS, collect, differences
from recalibration.maps import ELIGIBLE, choose, recalibrated
from recalibration.options import Options
from recalibration.study import PARTS, Study

HEAD = ("guide", "recalibration", "accuracy %", "NLL", "Brier", "ECE",
        *(f"{name.upper()} coverage, size, alarms" for name in SETS))  # fmt: skip


def rows(result: xr.Dataset) -> list[list[str]]:
    """The table: means over seeds of figures and of the ends of their intervals.

    Over the seeds that have them: see ``figures``. An alarm is a test of shift that finds
    calibration and test cases, or the coverage, other than alike.
    """
    mean = result.mean("seed")
    alarms, seeds = (result["shift_pvalue"] < FALSE_ALARM).sum("seed"), result.sizes["seed"]
    lines = []
    for guide, name in itertools.product(result["guide"].values, result["map"].values):
        part = mean.sel({"guide": guide, "map": name})
        shown = [interval(part, figure, 100 if figure == "accuracy" else 1) for figure in FIGURES]
        told = alarms.sel({"guide": guide, "map": name}).values
        triples = zip(part["coverage"].values, part["set_size"].values, told, strict=True)
        sets = [f"{one:.3f}, {size:.2f}, {number} of {seeds}" for one, size, number in triples]
        lines.append([str(guide).replace("_", "-"), str(name), *shown, *sets])
    return lines


def interval(part: xr.Dataset, name: str, factor: int) -> str:
    """A figure and its 95 % interval."""
    value, low, high = (factor * float(part[f"{name}{end}"]) for end in ("", "_lower", "_upper"))
    digits = 1 if factor == 100 else 3
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def band(study: Study, result: xr.Dataset) -> str:
    """What the coverage should be, in words."""
    low, high = (float(result[f"coverage_{end}"].mean()) for end in ("lower", "upper"))
    return (
        f"Exact 99 % band of every coverage: {low:.3f} to {high:.3f}, for at least "
        f"{1 - study.options.alpha:g} aimed at ({study.parts['conformal'].num_cases} calibration "
        f"and {study.parts['test'].num_cases} test cases). Ties of scores, which isotonic and "
        "histogram maps make, can only raise it."
    )


def verdict(gaps: xr.Dataset, chosen: dict[str, str]) -> str:
    """Whether the Bayesian net chosen on the validation part beats the frequentist one."""
    guide = chosen["best"]
    part = gaps.sel(guide=guide)
    words = []
    for figure in GAPS:
        one = part.sel(figure=figure)
        gap, low, high = (float(one[name]) for name in ("difference", "lower", "upper"))
        word = "lower" if gap < 0 else "not lower"
        sure = "" if high < 0 or low > 0 else ", which chance could give"
        words.append(f"{figure.upper()} is {word} ({gap:+.4f} [{low:+.4f}, {high:+.4f}]{sure})")
    return (
        f"Chosen on the validation part: {guide} with {chosen[guide]}, against the frequentist net "
        f"with {chosen['frequentist']}. On the test part its {' and its '.join(words)}."
    )


def gap_rows(gaps: xr.Dataset, chosen: dict[str, str]) -> list[list[str]]:
    """Differences from the frequentist net with their intervals."""
    lines = []
    for guide in gaps["guide"].values:
        cells = []
        for figure in GAPS:
            part = gaps.sel(guide=guide, figure=figure)
            value, low, high = (float(part[n]) for n in ("difference", "lower", "upper"))
            cells.append(f"{value:+.4f} [{low:+.4f}, {high:+.4f}]")
        lines.append([str(guide).replace("_", "-"), chosen[str(guide)], *cells])
    return lines


GAP_HEAD = ("guide", "recalibration", "NLL less the frequentist's", "ECE less the frequentist's")


def show(study: Study, result: xr.Dataset, gaps: xr.Dataset, chosen: dict[str, str]) -> None:
    """A report on the chosen Bayesian net, and the table of all."""
    guide, seed = chosen["best"], study.options.seed[0]
    learnt_on, held, test = (study.tree(guide, seed, part) for part in PARTS)
    after = recalibrated(chosen[guide], learnt_on, test)
    held_after = recalibrated(chosen[guide], learnt_on, held)
    sets = conformal.predict_sets(
        conformal.calibrate(held_after, study.options.alpha), after, shift_alarm=0
    )
    names = dict.fromkeys(("none", *ELIGIBLE, "isotonic"))
    curves = {name: calibration.pava(recalibrated(name, learnt_on, test)) for name in names}
    sections = [
        Section(
            "recalibration",
            "Before and after recalibration",
            paragraph(
                f"How often {guide.replace('_', '-')} is right against how sure it is: a "
                "calibrated net stays in the grey band."
            )
            + picture(
                calibration_curves.recalibration(curves),
                "Isotonic reliability curves before and after recalibration.",
                wide=True,
            ),
        ),
        Section(
            "set-sizes",
            "Prediction sets",
            paragraph(f"LAC sets after {chosen[guide]} recalibration. {band(study, result)}")
            + picture(prediction_sets.set_sizes(sets), "Histogram of prediction set sizes.")
            + picture(
                prediction_sets.group_coverage(conformal.coverage(sets, after)),
                "Coverage of the prediction sets by true class, with its band.",
            ),
        ),
        Section(
            "table",
            "All guides and recalibrations",
            paragraph(verdict(gaps, chosen))
            + html_table(GAP_HEAD, gap_rows(gaps, chosen))
            + paragraph("Means over seeds, with 95 % bootstrap intervals over cases.")
            + html_table(HEAD, rows(result)),
        ),
    ]
    reliability = {
        str(one).replace("_", "-"): scoring.reliability(
            recalibrated(
                chosen[one], *(study.tree(one, seed, p) for p in ("recalibration", "test"))
            )
        )
        for one in study.options.guide
    }
    write_report(
        study.folder / "report.html",
        title=study.pictures.title,
        smoke=study.options.smoke,
        tree=after,
        images=study.images,
        reliability=reliability,
        scores=scoring.score(after),
        sections=sections,
        notes=(
            verdict(gaps, chosen),
            study.pictures.caution,
        ),
    )


def main(options: Options) -> None:
    """Run the study, print and save its table, write the report."""
    study = Study(options)
    for seed, guide in itertools.product(options.seed, options.guide):
        study.run(guide, seed)
    chosen = choose(study)
    with warnings.catch_warnings():
        # Maps with steps can give a class 0: their NLL is infinite, and the table says so.
        warnings.filterwarnings("ignore", ".*probability exactly 0")
        result = collect(study)
        storage.save(result, study.folder / "table.nc")
        text = [storage.markdown_table(HEAD, rows(result)), band(study, result)]
        if "best" in chosen and "frequentist" in chosen:
            gaps = differences(study, chosen)
            storage.save(gaps, study.folder / "differences.nc")
            show(study, result, gaps, chosen)
            text += [
                storage.markdown_table(GAP_HEAD, gap_rows(gaps, chosen)),
                verdict(gaps, chosen),
            ]
    storage.write_text(study.folder / "table.md", "\n\n".join(text) + "\n")
    print("\n" + "\n\n".join(text))
    print(f"Wrote {study.folder / 'table.md'}")
