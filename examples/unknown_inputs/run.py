"""The study from end to end."""

import xarray as xr

from ppl_med import storage
from ppl_med.storage import check_same, open_run
from unknown_inputs.figures import assemble, judge
from unknown_inputs.options import Options
from unknown_inputs.pages import write
from unknown_inputs.severity import curves, over_seeds
from unknown_inputs.study import BASELINES, Study


def main(options: Options) -> None:
    """Run the study, print and save its tables, write the report."""
    if options.smoke:
        options.draws, options.seed = 2, options.seed[:1]
    folder = open_run(options.out, resume=options.resume)
    check_same(options, folder, free=("data", "source", "guide", "seed", "severity", "second_site"))
    studies = {name: Study(options, name, folder) for name in options.source}
    results: dict[str, xr.Dataset] = {}
    for name, study in studies.items():
        cells = {
            (guide, seed): judge(study, guide, seed)
            for seed in options.seed
            for guide in (*options.guide, *BASELINES)
        }
        results[name] = assemble(cells)
        storage.save(results[name], folder / f"table-{name}.nc")
    severities = {}
    for name in options.severity:
        if name in studies and studies[name].source.observation == "label":
            found = {
                (guide, seed): curves(studies[name], guide, seed)
                for seed in options.seed
                for guide in options.guide
            }
            severities[name] = over_seeds(found)
            storage.save(severities[name], folder / f"severity-{name}.nc")
    shown = "ensemble" if "ensemble" in options.guide else options.guide[0]
    text = write(folder, studies, results, severities, shown, options.seed[0], smoke=options.smoke)
    print(text)
    print(f"Wrote {folder / 'table.md'} and {folder / 'report.html'}")
