"""Folders of small volumes with label maps, and what their crops hold by brute force."""

import numpy as np

from label_maps import random_objects
from pixvox.data.volumes.crop_grid import CropGrid

SIZE = (9, 40, 33)


def write_volumes(folder, count=3, size=SIZE, objects=12):
    """Write volumes of 16 bit beside their label maps, as .npy files; return the label maps."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return [write_volume(folder, f"v{number}", size, objects, seed=number) for number in range(count)]


def write_volume(folder, name, size=SIZE, objects=12, seed=0):
    labels = random_objects(size, objects, seed).astype(np.uint16)
    labels[:, : size[-2] // 2] *= labels[:, : size[-2] // 2] > 4  # some crops are empty
    np.save(folder / "images" / f"{name}.npy", labels * 100 + np.arange(size[-1], dtype=np.uint16))
    np.save(folder / "labels" / f"{name}.npy", labels)
    return labels


def crops_of(labels, size, overlap=0.0, min_volume=1):
    """Return start and objects of each crop: box (x0, y0, z0, x1, y1, z1) and voxels by id."""
    found = []
    for region in CropGrid(labels.shape, size, overlap):
        crop, objects = labels[region], {}
        for number in np.unique(crop[crop > 0]).tolist():
            places = np.argwhere(crop == number)[:, ::-1]
            if len(places) >= min_volume:
                objects[number] = (*places.min(0).tolist(), *(places.max(0) + 1).tolist(), len(places))
        found.append((tuple(part.start for part in region), objects))
    return found


def content(catalogue):
    """Return all volumes, crops and objects of a catalogue as plain values."""
    ids = catalogue.select(empty=True)
    crops, objects = catalogue.crops(ids), catalogue.objects(ids)
    by_crop = {number: {} for number in ids.tolist()}
    rows = zip(
        objects.crops.tolist(), objects.ids.tolist(), objects.boxes.tolist(), objects.voxels, strict=True
    )
    for crop, number, box, voxels in rows:
        by_crop[crop][number] = (*box, int(voxels))
    names = [catalogue.volumes[number].entry for number in crops.volumes.tolist()]
    return [
        (name, tuple(start), by_crop[number])
        for name, start, number in zip(names, crops.starts.tolist(), ids.tolist(), strict=True)
    ]
