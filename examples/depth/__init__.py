"""The study of depths, by parts."""
