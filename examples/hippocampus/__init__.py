"""The study of hippocampus volumes, by parts."""
