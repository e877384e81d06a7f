"""The study of street scenes, by parts."""
