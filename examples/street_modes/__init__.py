"""Pictures of street scenes whose classes are ambiguous."""
