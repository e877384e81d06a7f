"""Active learning on cells."""
