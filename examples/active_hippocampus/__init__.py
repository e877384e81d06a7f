"""Active learning on slices of the hippocampus."""
