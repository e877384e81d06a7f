"""Parts of the study of right and wrong reasons."""
