"""Does a net know what it has never seen? Every score, five guides, images from elsewhere.

Nets are trained on digits, on chest X-rays of children and of adults, on red cells, white cells and
MR volumes. Then they are shown letters, films of other hospitals, cells of other laboratories, and
their own test cases made worse. Every score of ``ppl_med.analysis.ood`` and ODIN is asked how
unlike each case is; the table says how often a case from elsewhere scores higher than one of the
test part (AUROC, 0.5 is chance), with errors over patients and seeds, and how well the same score
finds wrong predictions. Nothing is tuned on cases from elsewhere.

Two baselines: a net that was never trained, and grey levels and sharpness without any net.

Every run (source, guide, seed) gets a folder with its checkpoint, scores and figures. Finished runs
are not repeated with --resume, so the study can be stopped and spread over machines. Writes

    table.md, table-<source>.nc      figures with errors
    severity-<source>.nc, .png       accuracy, calibration, uncertainty as images get worse
    report.html                      pictures of what was and was not found
"""

import tyro
from unknown_inputs.options import Options

if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    from unknown_inputs.run import main  # after the options, so that --help is quick

    main(options)
