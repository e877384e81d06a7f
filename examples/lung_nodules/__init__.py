"""The study of lung nodules, by parts."""
