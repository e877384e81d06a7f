"""The study of other laboratories."""
