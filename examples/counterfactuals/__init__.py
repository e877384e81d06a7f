"""Parts of the study of counterfactuals: what is trained, what is explained, who judges it."""
