"""Parts of the carbon dioxide study."""
