"""How fast random crops of a volume are read, beside tifffile, zarr and MONAI, as Markdown.

    OMP_NUM_THREADS=1 python benchmarks/crop_reading.py [--size 96,512,512] [--crop 32,96,96] [--rounds 9] [--json FILE]

A volume of uint16 is stored in each format. In every round each reader reads the same crops, drawn for the round, one
after the other (MONAI draws its own). A figure is the median over rounds of CPU seconds of the process, those of
codecs' threads included; a ratio is the median of the rounds' own, with the smallest and the largest. Files are in the
system's cache. All give a contiguous copy that is the caller's own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import tifffile
import torch
import zarr
from timing import machine, write_json

from pixvox.data.datasets.catalogue_crops import CatalogueCrops
from pixvox.data.volumes.index import build_catalogue
from pixvox.data.volumes.open import open_volume

Place = tuple[slice, ...]
Reader = Callable[[Place], object]


def noise(size: tuple[int, ...]) -> np.ndarray:
    """Return what a camera sees of nothing: it shrinks to a good half when it is compressed."""
    drawn = np.random.default_rng(0).normal(1000, 50, size).clip(0)
    return drawn.astype(np.uint16)


def draw(count: int, size: tuple[int, ...], crop: tuple[int, ...], seed: int) -> list[Place]:
    """Return random places of crops."""
    random = np.random.default_rng(seed)
    corners = random.integers(0, np.array(size) - crop + 1, (count, len(size)))
    return [tuple(slice(int(a), int(a) + n) for a, n in zip(corner, crop, strict=True)) for corner in corners]


def race(
    readers: dict[str, Reader], size: tuple[int, ...], crop: tuple[int, ...], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of a crop in every round by reader."""

    def seconds(read: Reader, places: list[Place]) -> float:
        start = time.process_time()
        for place in places:
            read(place)
        return (time.process_time() - start) / len(places)

    for read in readers.values():  # opened, imported, cached
        seconds(read, draw(2, size, crop, 0))
    slowest = max(seconds(read, draw(3, size, crop, 1)) for read in readers.values())
    count = int(np.clip(0.3 / slowest, 8, 200))
    times: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds):
        places = draw(count, size, crop, 2 + number)
        for name, read in readers.items():
            times[name].append(seconds(read, places))
    return times


def tell(title: str, times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Print a table against the first reader, and return it."""
    first, *_ = times.values()
    print(f"\n| {title} | crops/s | times as fast as {next(iter(times))} |\n|---|---:|---:|")
    result = {}
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(first, seconds, strict=True)]
        rate, ratio = 1 / statistics.median(seconds), statistics.median(ratios)
        spread = f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {rate:,.0f} | {'' if seconds is first else spread} |")
        result[name] = {"crops_per_s": rate, "ratio": ratio, "lowest": min(ratios), "highest": max(ratios)}
    return result


def monai_reader(path: Path, crop: tuple[int, ...], **options: object) -> Reader:
    """Return MONAI's way: load, channels first, a random crop."""
    from monai.transforms import Compose, EnsureChannelFirst, LoadImage, RandSpatialCrop

    steps = Compose(
        [
            LoadImage(image_only=True, dtype=None, **options),
            EnsureChannelFirst(channel_dim="no_channel"),
            RandSpatialCrop(crop, random_size=False),
        ]
    )
    return lambda place: steps(str(path)).clone()


def stored(
    folder: Path, size: tuple[int, ...], crop: tuple[int, ...]
) -> Iterator[tuple[str, dict[str, Reader]]]:
    """Yield for each format its readers, the plain library first."""
    values = noise(size)
    files = {
        name: folder / name
        for name in ("plain.tif", "deflate.tif", "cubes.zarr", "planes.zarr", "volume.npy")
    }
    tifffile.imwrite(files["plain.tif"], values)
    tifffile.imwrite(files["deflate.tif"], values, compression="zlib")
    np.save(files["volume.npy"], values)
    for name, chunks in (("cubes.zarr", (32, 64, 64)), ("planes.zarr", (1, 256, 256))):
        zarr.create_array(files[name], shape=size, chunks=chunks, dtype=values.dtype)[:] = values
    mapped, ours = tifffile.memmap(files["plain.tif"], mode="r"), "volume.read"
    yield (
        "TIFF, uncompressed",
        {
            "tifffile.memmap": lambda place: np.array(mapped[place]),
            ours: open_volume(files["plain.tif"], 3).read,
        },
    )
    pages = tifffile.TiffFile(files["deflate.tif"])
    yield (
        "TIFF, deflate, a page per plane",
        {
            "tifffile, page by page": lambda place: np.array(
                pages.asarray(key=place[0])[:, place[1], place[2]]
            ),
            ours: open_volume(files["deflate.tif"], 3).read,
        },
    )
    for name, title in (("cubes.zarr", "chunks of 32 x 64 x 64"), ("planes.zarr", "chunks of 1 x 256 x 256")):
        array = zarr.open_array(files[name], mode="r")
        yield f"Zarr, {title}", {"zarr": array.__getitem__, ours: open_volume(files[name], 3).read}
    yield (
        "NumPy file",
        {
            "MONAI": monai_reader(files["volume.npy"], crop),
            "MONAI, mmap_mode": monai_reader(files["volume.npy"], crop, mmap_mode="r"),
            ours: open_volume(files["volume.npy"], 3).read,
        },
    )
    with suppress(ImportError):
        import nibabel

        nifti = folder / "volume.nii"
        nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), np.eye(4)), nifti)
        yield (
            "NIfTI",
            {
                "MONAI": monai_reader(nifti, crop[::-1]),
                "nibabel, dataobj": lambda place: np.array(
                    nibabel.load(nifti).dataobj[place[::-1]].T, order="C"
                ),
                ours: open_volume(nifti, 3).read,
            },
        )


def training_crops(folder: Path, size: tuple[int, ...], crop: tuple[int, ...]) -> dict[str, Reader]:
    """Return readers of image, label map and ids of a crop, as training needs them."""
    labels = np.zeros(size, np.uint32)
    for i, corner in enumerate(np.ndindex(*(length // 24 for length in size)), 1):
        labels[tuple(slice(24 * at + 4, 24 * at + 20) for at in corner)] = i
    for name, values in (("images", noise(size)), ("labels", labels)):
        (folder / name).mkdir()
        tifffile.imwrite(folder / name / "a.tif", values)
    build_catalogue(folder, folder / "c.sqlite", crop)
    crops = CatalogueCrops(folder / "c.sqlite", foreground=None)
    image, label_map = (tifffile.memmap(folder / name / "a.tif", mode="r") for name in ("images", "labels"))

    def plain(place: Place) -> object:
        ids, numbers = np.unique(label_map[place], return_inverse=True)
        return (
            torch.from_numpy(image[place].astype(np.float32)),
            torch.from_numpy(numbers.astype(np.int32)),
            ids,
        )

    def ours(place: Place) -> object:
        return crops[place[0].start * 7 % len(crops)]

    return {"tifffile.memmap and numpy.unique": plain, "CatalogueCrops": ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="96,512,512")
    parser.add_argument("--crop", default="32,96,96")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size, crop = (tuple(int(length) for length in text.split(",")) for text in (options.size, options.crop))
    results: dict[str, object] = {}
    print(f"Crops of {options.crop} from a volume of {options.size}, uint16; {options.rounds} rounds")
    with tempfile.TemporaryDirectory() as name:
        for title, readers in stored(Path(name), size, crop):
            results[title] = tell(title, race(readers, size, crop, options.rounds))
        (Path(name) / "training").mkdir()
        title, readers = "image, objects and ids", training_crops(Path(name) / "training", size, crop)
        results[title] = tell(title, race(readers, size, crop, options.rounds))
    facts = machine()
    print(f"\n{facts['processor']}, CPU time")
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
