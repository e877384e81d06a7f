"""The study from end to end."""

import time

from blood_cells.options import Options
from blood_cells.pictures import draw_objects, tell
from blood_cells.scores import collect, table
from blood_cells.study import Study
from ppl_med.storage import check_same, open_run, write_text


def main(options: Options) -> None:
    """Train, join, score, draw."""
    started = time.perf_counter()
    folder = open_run(options.out, resume=options.resume)
    check_same(options, folder, free=("data", "guide", "seed", "device", "resamples"))
    if options.smoke:
        options.epochs, options.draws, options.size, options.resamples = 1, 2, (60, 80), 20
        options.seed = options.seed[:1]
    study = Study(options, folder)
    for seed in options.seed:
        for guide in options.guide:
            study.posterior(guide, seed)
    found = collect(study)
    text = table(found)
    write_text(folder / "table.md", text + "\n")
    print(text)
    print(tell(study))
    draw_objects(study).savefig(folder / "objects.png", dpi=80)
    print(f"{time.perf_counter() - started:.0f} s")
    print(f"Wrote {folder / 'table.md'} and {folder / 'objects.png'}")
