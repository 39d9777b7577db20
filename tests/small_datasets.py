"""Public datasets in miniature, in the folders of their real downloads."""

from dataclasses import dataclass

import numpy as np
import tifffile
from PIL import Image
from scipy.io import savemat

from pixvox.data.label_space import bit_palette

SIZE = (4, 6)


@dataclass
class Layout:
    """Where a dataset has its images and label maps, and what its label maps hold.

    ``{}`` is the name of an image, in which ``*`` is another folder for images than for label maps; ``other`` begins
    with the name of a second split. ``values`` are what the label maps of the first and of the second image hold,
    ``classes`` what they mean, ``lists`` the files that hold the names of each split.
    """

    train: tuple[str, str]
    other: tuple[str, str, str]
    values: list
    classes: list[int]
    names: tuple[str, str] = ("b_10", "a_9")
    other_names: tuple[str, str] | None = None
    lists: tuple[str, str] | None = None
    palette: bool = False
    overrides: tuple[tuple[str, object], ...] = ()


CITYSCAPES = ("leftImg8bit/train/{}_leftImg8bit.png", "gtFine/train/{}_gtFine_labelIds.png")
CITYSCAPES_VAL = ("val", "leftImg8bit/val/{}_leftImg8bit.png", "gtFine/val/{}_gtFine_labelIds.png")
COCO = ("val", "val2017/{}.jpg", "stuffthingmaps_trainval2017/val2017/{}.png")
FRAMES = ("bonn/bonn_000001_000019", "aachen/aachen_000173_000019")

LAYOUTS = {
    "ade20k": Layout(
        ("ADEChallengeData2016/images/training/{}.jpg", "ADEChallengeData2016/annotations/training/{}.png"),
        ("val", "ADEChallengeData2016/images/validation/{}.jpg",
         "ADEChallengeData2016/annotations/validation/{}.png"),
        [0, 150], [255, 149], ("ADE_train_00000010", "ADE_train_00000009"),
    ),
    "ade20k with 151": Layout(
        ("images/training/{}.jpg", "annotations/training/{}.png"),
        ("val", "images/validation/{}.jpg", "annotations/validation/{}.png"),
        [0, 150], [0, 150], overrides=(("reduce_zero_label", False),),
    ),
    "coco_stuff": Layout(
        ("train2017/{}.jpg", "stuffthingmaps_trainval2017/train2017/{}.png"), COCO, [181, 255], [170, 255]
    ),
    "coco_stuff of VOC": Layout(
        ("images/train2017/{}.jpg", "stuffthingmaps/train2017/{}.png"),
        ("val", "images/val2017/{}.jpg", "stuffthingmaps/val2017/{}.png"), [3, 181], [14, 0],
        overrides=(("label_space", "coco{voc}"),),
    ),
    "voc": Layout(
        ("VOCdevkit/VOC2012/JPEGImages/{}.jpg", "VOCdevkit/VOC2012/SegmentationClass/{}.png"),
        ("val", "VOCdevkit/VOC2012/JPEGImages/{}.jpg", "VOCdevkit/VOC2012/SegmentationClass/{}.png"),
        [1, 255], [1, 255], ("2007_000039", "2007_000032"), ("2007_000123", "2007_000033"),
        tuple(f"VOCdevkit/VOC2012/ImageSets/Segmentation/{split}.txt" for split in ("train", "val")), True,
    ),
    "sbd": Layout(
        ("benchmark_RELEASE/dataset/img/{}.jpg", "benchmark_RELEASE/dataset/cls/{}.mat"),
        ("val", "benchmark_RELEASE/dataset/img/{}.jpg", "benchmark_RELEASE/dataset/cls/{}.mat"),
        [20, 0], [20, 0], ("2008_000008", "2008_000002"), ("2008_000090", "2008_000073"),
        ("benchmark_RELEASE/dataset/train.txt", "benchmark_RELEASE/dataset/val.txt"),
    ),
    "bdd100k": Layout(
        ("bdd100k/images/10k/train/{}.jpg", "bdd100k/labels/sem_seg/masks/train/{}.png"),
        ("val", "bdd100k/images/10k/val/{}.jpg", "bdd100k/labels/sem_seg/masks/val/{}.png"), [18, 255], [18, 255],
    ),
    "bdd100k as it was": Layout(
        ("bdd100k/seg/images/train/{}.jpg", "bdd100k/seg/labels/train/{}_train_id.png"),
        ("val", "bdd100k/seg/images/val/{}.jpg", "bdd100k/seg/labels/val/{}_train_id.png"), [18, 255], [18, 255],
    ),
    "cityscapes": Layout(CITYSCAPES, CITYSCAPES_VAL, [33, 9], [18, 255], FRAMES),
    "cityscapes by category": Layout(
        CITYSCAPES, CITYSCAPES_VAL, [33, 4], [6, 255], FRAMES, overrides=(("label_space", "Cityscapes{category}"),)
    ),
    "cityscapes, coarse": Layout(
        ("leftImg8bit/train_extra/{}_leftImg8bit.png", "gtCoarse/train_extra/{}_gtCoarse_labelIds.png"),
        CITYSCAPES_VAL, [33, 9], [18, 255], FRAMES,
        overrides=(("split", "train_extra"), ("fields.quality", "gtCoarse")),
    ),
    "mapillary": Layout(
        ("training/images/{}.jpg", "training/v2.0/labels/{}.png"),
        ("val", "validation/images/{}.jpg", "validation/v2.0/labels/{}.png"), [21, 123], [20, 255],
    ),
    "mapillary 1.2": Layout(
        ("training/images/{}.jpg", "training/labels/{}.png"),
        ("val", "validation/images/{}.jpg", "validation/labels/{}.png"), [13, 65], [13, 255],
        overrides=(("version", "v1.2"),),
    ),
    "lip": Layout(
        ("TrainVal_images/TrainVal_images/train_images/{}.jpg",
         "TrainVal_parsing_annotations/TrainVal_parsing_annotations/TrainVal_parsing_annotations/"
         "train_segmentations/{}.png"),
        ("val", "TrainVal_images/val_images/{}.jpg", "TrainVal_parsing_annotations/val_segmentations/{}.png"),
        [14, 19], [14, 19],
    ),
    "loveda": Layout(
        ("Train/{}.png", "Train/{}.png"), ("val", "Val/{}.png", "Val/{}.png"), [0, 7], [255, 6],
        ("Urban/*/10", "Rural/*/9"),
    ),
    "isaid": Layout(
        ("train/images/{}.png", "train/Semantic_masks/images/{}_instance_color_RGB.png"),
        ("val", "val/images/{}.png", "val/Semantic_masks/images/{}_instance_color_RGB.png"),
        [(0, 0, 63), (0, 0, 0)], [1, 0], ("P0010", "P0009"),
    ),
    "potsdam": Layout(
        ("2_Ortho_RGB/top_potsdam_{}_RGB.tif", "5_Labels_all/top_potsdam_{}_label.tif"),
        ("val", "2_Ortho_RGB/top_potsdam_{}_RGB.tif", "5_Labels_all/top_potsdam_{}_label.tif"),
        [(255, 0, 0), (252, 255, 0)], [5, 4], ("2_10", "2_11"), ("2_13", "2_14"),
    ),
    "potsdam, eroded": Layout(
        ("2_Ortho_RGB/top_potsdam_{}_RGB.tif", "5_Labels_all_noBoundary/top_potsdam_{}_label_noBoundary.tif"),
        ("val", "2_Ortho_RGB/top_potsdam_{}_RGB.tif", "5_Labels_all/top_potsdam_{}_label.tif"),
        [(255, 0, 0), (0, 0, 0)], [5, 255], ("2_10", "2_11"), ("2_13", "2_14"),
        overrides=(("fields.border", "_noBoundary"),),
    ),
    "vaihingen": Layout(
        ("top/top_mosaic_09cm_area{}.tif", "gts_for_participants/top_mosaic_09cm_area{}.tif"),
        ("val", "top/top_mosaic_09cm_area{}.tif", "gts_for_participants/top_mosaic_09cm_area{}.tif"),
        [(0, 255, 0), (0, 255, 255)], [3, 2], ("11", "3"), ("2", "38"),
    ),
    "p3m10k": Layout(
        ("P3M-10k/train/blurred_image/{}.jpg", "P3M-10k/train/mask/{}.png"),
        ("val", "P3M-10k/validation/P3M-500-P/blurred_image/{}.jpg", "P3M-10k/validation/P3M-500-P/mask/{}.png"),
        [100, 200], [0, 1],
    ),
    "supervisely_person": Layout(
        ("supervisely_person_clean_2667_img/supervisely_person_clean_2667_img/images/{}.png",
         "supervisely_person_clean_2667_img/supervisely_person_clean_2667_img/masks/{}.png"),
        ("", "", ""), [0, 255], [0, 1],
    ),
    "oxford_pet": Layout(
        ("images/{}.jpg", "annotations/trimaps/{}.png"), ("test", "images/{}.jpg", "annotations/trimaps/{}.png"),
        [1, 3], [1, 255], ("Bombay_10", "Abyssinian_9"), ("Bombay_11", "Abyssinian_1"),
        ("annotations/trainval.txt", "annotations/test.txt"),
    ),
}  # fmt: skip


def write_picture(path, value, palette=False):
    """Write a picture, or a MATLAB file, that holds one value or colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full((*SIZE, 3) if isinstance(value, tuple) else SIZE, value, np.uint8)
    if path.suffix == ".mat":
        savemat(path, {"GTcls": {"Segmentation": array, "Boundaries": np.zeros(1)}})
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array)
    else:
        picture = Image.fromarray(array)
        if palette:
            picture.putpalette([part for color in bit_palette(256) for part in color])
        picture.save(path)


def build(root, name):
    """Write both splits of a dataset, two images each; grey levels tell which image is which."""
    layout = LAYOUTS[name]
    parts = [(layout.train, layout.names), (layout.other[1:], layout.other_names or layout.names)]
    for number, ((images, labels), stems) in enumerate(parts[: 2 if layout.other[0] else 1]):
        for place, stem in enumerate(stems):
            grey = 40 + 100 * place
            image, label = stem.replace("*", "images_png"), stem.replace("*", "masks_png")
            write_picture(root / images.format(image), (grey, grey, grey))
            write_picture(root / labels.format(label), layout.values[place], layout.palette)
        if layout.lists is not None:
            file = root / layout.lists[number]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(f"{stem} 1 1 1" for stem in stems))


def configuration(name):
    """Return the configuration that a layout is of: the first word of its name."""
    return name.split()[0].strip(",")
