"""The training loop behind ``fit``: objectives, history, held-out scores, the dry run."""
