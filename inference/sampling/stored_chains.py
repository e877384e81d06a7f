"""Chains from a file, without knowing how many draws it holds."""

from pathlib import Path
from typing import Any

from ppl_med.inference import checkpoint as files
from ppl_med.inference.guides.kept_draws import KeptChains
from ppl_med.programs.sites import Program


def load_chains(path: str | Path, model: Program) -> KeptChains:
    """Load the chains that ``sample`` left and ``save`` wrote, and the model with them.

    Args:
        path: File written by ``save``.
        model: A model built as the saved one was; its parameters become those of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, of another model, or holds no chains.
    """
    content = files.read(path)
    states: list[Any] = [state["guide"].get("", {}) for state in content["states"]]
    if not states or not all("_extra_state" in state for state in states):
        raise ValueError(
            f"{path} holds no chains of draws: a trained guide is loaded by load(path, model, "
            "guide), and a checkpoint of sample by the same call with resume=True"
        )
    told = [state["_extra_state"] for state in states]
    samples = [
        {name: state[f"samples_{index}"] for index, name in enumerate(own["sites"])}
        for state, own in zip(states, told, strict=True)
    ]
    stats = [
        {name: state[f"stat_{name}"] for name in own["stats"]}
        for state, own in zip(states, told, strict=True)
    ]
    guide = KeptChains(samples, stats, told[0]["attrs"])
    files.load(path, model, guide)
    return guide
