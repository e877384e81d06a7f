"""Descriptions of small runs, as dicts."""

from typing import Any

CELLS = {"name": "ppl_med.data.blood_smear", "size": 16}


def classifier(**changes: Any) -> dict[str, Any]:
    """Cells with and without parasites, a linear net, a few steps."""
    layers = [
        {"name": "torch.nn.AvgPool2d", "kernel_size": 4},
        {"name": "torch.nn.Flatten"},
        {"name": "torch.nn.Linear", "in_features": 16, "out_features": 2},
    ]
    config = {
        "seed": 3,
        "net": {"name": "torch.nn.Sequential", "args": layers},
        "prior": {"name": "ppl_med.weights.Normal", "scale": 0.5},
        "model": {"name": "ppl_med.models.BayesianClassifier", "classes": ["healthy", "ill"]},
        "guide": {"name": "ppl_med.inference.MeanFieldNormal", "init_scale": 0.1},
        "data": {
            "train": {**CELLS, "num_cases": 24, "seed": 0},
            "test": {**CELLS, "num_cases": 10, "seed": 1},
            "keep": ["image", "label", "id"],
            "batches": {"batch_size": 12},
        },
        "fit": {"epochs": 2, "learning_rate": 0.01, "device": "cpu"},
        "predict": {"draws": 4, "device": "cpu"},
    }
    return {**config, **changes}
