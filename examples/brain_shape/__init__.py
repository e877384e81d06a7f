"""Parts of the study of the shape of the brain."""
