"""Runs of active learning side by side: paired over seeds, and as curves with bands."""
