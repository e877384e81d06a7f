"""Training on several processes, each with a part of every batch."""
