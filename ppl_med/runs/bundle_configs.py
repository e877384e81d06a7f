"""The two JSON files that make a folder a MONAI Bundle, from a run."""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from ppl_med.checks import reject
from ppl_med.runs.bundle_preprocessing import Preprocessing
from ppl_med.runs.model_card import title_of
from ppl_med.runs.run_folder import Run

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
_PACKAGES = ("ppl-med", "pyro-ppl", "xarray", "safetensors", "nibabel")


def check_shapes(run: Run) -> None:
    """Raise a ValueError if a run does not know the shape of its images."""
    if not run.example.get("image"):
        reject("run", "one that knows its images' shape; save it with example=a batch", run.folder)


def metadata(
    run: Run, figures: Mapping[str, tuple[float, float, float]], preprocessing: Preprocessing
) -> dict[str, Any]:
    """What MONAI's schema asks for.

    Args:
        run: The run, which knows the shape of its images.
        figures: Figures of merit as (value, lower, upper), by name.
        preprocessing: How its images come from their files.
    """
    card = run.config.get("card", {})
    channels, *space = run.example["image"]["shape"][1:]
    is_masks = "mask" in run.example
    task = "segmentation" if is_masks else "classification" if run.classes else "regression"
    own = str(card.get("version", "0.1.0"))
    outputs = len(run.classes) or 1
    names = run.classes or ("value",)
    return {
        "schema": SCHEMA,
        "version": own,
        "changelog": {own: f"exported by ppl_med {version_of('ppl-med')}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version_of(name) for name in _PACKAGES},
        "supported_apps": {},
        "name": title_of(run),
        "task": f"{task} with uncertainty",
        "description": f"{title_of(run)}. A posterior over networks: every prediction has a mean "
        f"and a spread. {preprocessing.statement.replace('**', '')} See docs/README.md.",
        "intended_use": card.get("intended_use") or "not stated",
        "authors": _text(card.get("authors")),
        "copyright": _text(card.get("copyright")),
        "data_source": _text(card.get("data")),
        "data_type": "image files"
        if preprocessing.is_complete
        else "images that are prepared as those of the run were, which the bundle does not do",
        "references": list(card.get("references") or []),
        "eval_metrics": {
            name: {"value": value, "lower_95": lower, "upper_95": upper}
            for name, (value, lower, upper) in figures.items()
            if value == value and lower == lower
        },
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": card.get("modality") or "n/a",
                    "num_channels": channels,
                    "spatial_shape": space,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {str(k): f"channel {k}" for k in range(channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image" if is_masks else "probabilities" if run.classes else "tuples",
                    "format": "labels" if is_masks else "classes" if run.classes else "raw",
                    "num_channels": outputs,
                    "spatial_shape": space if is_masks else [1],
                    "dtype": "float32",
                    "value_range": [0, 1] if run.classes else [],
                    "is_patch_data": False,
                    "channel_def": {str(k): name for k, name in enumerate(names)},
                }
            },
        },
    }


def inference_config(
    run: Run, allow: Iterable[str], preprocessing: Preprocessing
) -> dict[str, Any]:
    """The program that MONAI's runner executes."""
    settings = run.config.get("predict", {})
    window = {n: settings[n] for n in ("window", "overlap", "blend") if n in settings}
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "pattern": preprocessing.pattern,
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "draws": settings.get("draws", 32),
        "seed": run.config["seed"],
        "batch_size": 1,
        "allow": list(allow),
        "posterior": {
            "_target_": "ppl_med.runs.load_bundle",
            "folder": "@bundle_root",
            "allow": "@allow",
        },
        "network_def": "$@posterior.model",
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing.transforms},
        "dataset": {
            "_target_": "Dataset",
            "data": {
                "_target_": "ppl_med.runs.find_images",
                "folder": "@dataset_dir",
                "pattern": "@pattern",
            },
            "transform": "@preprocessing",
        },
        "inferer": {"_target_": "SimpleInferer"},
        "evaluator": {
            "_target_": "ppl_med.runs.BundlePredictor",
            "posterior": "@posterior",
            "dataset": "@dataset",
            "output_dir": "@output_dir",
            "draws": "@draws",
            "seed": "@seed",
            "batch_size": "@batch_size",
            "device": "@device",
            **window,
        },
        "run": ["$@evaluator.run()"],
    }


def version_of(package: str) -> str:
    """The version of a package that is installed, or imported from its source."""
    if package == "ppl-med":
        import ppl_med

        return ppl_med.__version__
    try:
        return version(package)
    except ImportError:
        return "not installed"


def _text(value: Any) -> str:
    found = ", ".join(value) if isinstance(value, list) else value
    return str(found or "not stated")
