"""Chest films with boxes: DICOM files or pictures, and tables of what readers marked."""
