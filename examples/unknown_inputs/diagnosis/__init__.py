"""The study of planted shifts."""
