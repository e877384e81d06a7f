"""Parts of the study of digits that are worth a label."""
