"""Results in the files that others work with: tables, and volumes in register with the input.

frames       to_frame, write_csv     one row per case
nifti        write_nifti             mask, probability, spread and entropy per voxel
attribution_files  write_attribution       mean and spread of an attribution per voxel
dicom_seg    write_dicom_seg         the same in the object that viewers of DICOM read
case_maps    these maps, on the grid of the file
"""

from ppl_med.analysis.exports.attribution_files import write_attribution
from ppl_med.analysis.exports.dicom_seg import write_dicom_seg
from ppl_med.analysis.exports.frames import to_frame, write_csv
from ppl_med.analysis.exports.nifti import write_nifti

__all__ = ["to_frame", "write_attribution", "write_csv", "write_dicom_seg", "write_nifti"]
