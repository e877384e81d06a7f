"""The study of malaria cells, by parts."""
