"""Parts of the study of chest films with boxes."""
