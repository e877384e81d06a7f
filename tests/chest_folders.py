"""Small sets of chest films with boxes, in the layouts of their readers, and what was written."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from reader_folders import save_dicom

SHAPE = (16, 24)
BOX = [6.0, 2.0, 18.0, 10.0]  # painted white


def film(number: int, white: bool) -> Any:
    """A dark film, with the box painted if there is one."""
    levels = np.full(SHAPE, 10 + number, np.uint8)
    if white:
        left, top, right, bottom = map(int, BOX)
        levels[top:bottom, left:right] = 255
    return levels


def write_rsna(folder: Path, films: int = 12, **tags: Any) -> None:
    """Films of even number have the box, number 4 a second one."""
    lines = ["patientId,x,y,width,height,Target"]
    details = ["patientId,class"]
    for k in range(films):
        name = f"p{k:02d}-a"
        save_dicom(folder / f"stage_2_train_images/{name}.dcm", film(k, k % 2 == 0),
                   PixelSpacing=[0.2, 0.2], **tags)  # fmt: skip
        lines += [f"{name},6,2,12,8,1"] if k % 2 == 0 else [f"{name},,,,,0"]
        lines += [f"{name},1,3,4,5,1"] if k == 4 else []
        details.append(f"{name},{('Lung Opacity', 'Normal')[k % 2]}")
    (folder / "stage_2_train_labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "stage_2_detailed_class_info.csv").write_text("\n".join(details) + "\n")


def write_vindr(folder: Path, films: int = 12) -> None:
    """Three readers, the last film two; of even films R2 and R5 drew boxes, R9 saw nothing."""
    lines = ["image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"]
    for k in range(films):
        name = f"f{k:02d}"
        save_dicom(folder / f"train/{name}.dicom", film(k, k % 2 == 0))
        readers = ("R9", "R2", "R5")[: 2 if k == films - 1 else 3]
        for who in readers:
            if k % 2 or who == "R9":
                lines.append(f"{name},No finding,14,{who},,,,")
            else:
                shift = int(who == "R5")
                box = ",".join(f"{edge + shift:g}" for edge in BOX)
                lines.append(f"{name},Nodule/Mass,8,{who},{box}")
                lines += [f"{name},Consolidation,4,{who},1,1,5,6"] if shift else []
    (folder / "train.csv").write_text("\n".join(lines) + "\n")


def write_cxr_lesions(folder: Path, films: int = 8) -> None:
    """Two films a patient; those of even number have the box, number 0 a second one."""
    index = ["file,split,width,height,patientid,finding,view,license,original_name"]
    boxes = ["file,class,xmin,ymin,xmax,ymax"]
    (folder / "images").mkdir(parents=True)
    for k in range(films):
        Image.fromarray(film(k, k % 2 == 0)).save(folder / f"images/c{k}.png")
        split = "train" if k < films // 2 else "val"
        index.append(f"c{k}.png,{split},{SHAPE[1]},{SHAPE[0]},{k // 2},ARDS,PA,CC BY,a{k}.png")
        boxes += [f"c{k}.png,Opacity,6,2,18,10"] if k % 2 == 0 else []
        boxes += [f"c{k}.png,Consolidation,1,1,5,6"] if k == 0 else []
    for name, lines in (("index", index), ("boxes", boxes)):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
