"""The study of planted and real confounders, by parts."""
