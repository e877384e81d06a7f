"""Parts of the study of raters and weights."""
