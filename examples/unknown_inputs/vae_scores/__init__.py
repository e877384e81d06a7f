"""The study of scores of VAEs."""
