"""Runs as files: described in YAML, trained from it, saved, loaded without a script, exported.

configuration    the file that describes a run
allowed_names    what such a file may name
experiment       fit, predict, check, report
run_folder       save, load
bundle_files     export, load_bundle: a MONAI Bundle, with a model card

The command line ``ppl-med`` calls these.
"""

from ppl_med.moved import renamed
from ppl_med.runs.bundle_files import export, load_bundle
from ppl_med.runs.bundle_images import ReadImage
from ppl_med.runs.bundle_predictor import BundlePredictor, find_images
from ppl_med.runs.configuration import read_config
from ppl_med.runs.experiment import check, fit, predict, report
from ppl_med.runs.run_folder import Run, load, save

__all__ = [
    "BundlePredictor",
    "ReadImage",
    "Run",
    "check",
    "export",
    "find_images",
    "fit",
    "load",
    "load_bundle",
    "predict",
    "read_config",
    "report",
    "save",
]

# Until version 0.2 the module of that name, now in ppl_med.storage.
__getattr__ = renamed(
    __name__,
    {"open_run": "ppl_med.storage.open_run", "check_same": "ppl_med.storage.check_same"},
)
