"""The study of what prediction sets cover."""
