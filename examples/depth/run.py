"""The study from end to end."""

from dense_uncertainty.variants import rows_of

from depth.options import Options
from depth.pages import show
from depth.scores import COLUMNS
from depth.study import Study, collect
from ppl_med import storage
from ppl_med.storage import check_same, open_run


def main(options: Options) -> None:
    """Run the study, print and save its table, write the report."""
    folder = open_run(options.out, resume=options.resume)
    if options.smoke:
        options.shrink()
    check_same(options, folder, free=("variant", "fraction", "seed"))
    study = Study(options, folder)
    result = collect(study)
    print(storage.markdown_table(*rows_of(result, COLUMNS, "images")))
    show(study, result)
    print(f"Wrote {folder / 'table.md'} and {folder / 'report.html'}")
