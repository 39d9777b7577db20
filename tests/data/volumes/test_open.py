import gzip
import itertools
import logging
import os
import pickle
import subprocess
import sys

import h5py
import numpy as np
import pytest
import tifffile
import torch
import zarr

import pixvox
from pixvox.data.images import read_image
from pixvox.data.volumes.formats import mapped
from pixvox.data.volumes.formats import tiff as lazy_tiff
from pixvox.data.volumes.open import open_volume
from pixvox.errors import DataError

RNG = np.random.default_rng(0)
VOLUME = RNG.integers(0, 60_000, (2, 7, 33, 41), dtype=np.uint16)  # channels, z, y, x
GREY = VOLUME[0]
ALL = (slice(None),) * 3
in_shards = pytest.mark.skipif(
    tuple(map(int, zarr.__version__.split(".")[:3])) < (3, 1, 3), reason="older zarr misreads shards"
)


def tif(path, **options):
    def write(array, axes):
        metadata = {"axes": axes, **options.get("metadata", {})}
        tifffile.imwrite(path, array, photometric="minisblack", **{**options, "metadata": metadata})
        return path

    return write


def zarr_array(path, **options):
    def write(array, axes):
        options.setdefault("chunks", tuple(min(length, 8) for length in array.shape))
        names = [axis.lower() for axis in axes]
        named = {"dimension_names": names} if options.get("zarr_format") != 2 else {}
        attributes = {} if named else {"_ARRAY_DIMENSIONS": names}
        zarr.create_array(str(path), data=array, attributes=attributes, **named, **options)
        return path

    return write


def hdf5(path, **options):
    def write(array, axes):
        with h5py.File(path, "w") as file:
            dataset = file.create_dataset("raw/image", data=array, **options)
            for dimension, axis in zip(dataset.dims, axes, strict=True):
                dimension.label = axis.lower()
        return path

    return write


def npy(path, order="C"):
    def write(array, axes):
        np.save(path, np.asarray(array, order=order))
        return path

    return write


WRITERS = {
    "tiff mapped": lambda folder: tif(folder / "a.tif"),
    "tiff of the other byte order": lambda folder: tif(folder / "a.tif", byteorder=">"),
    "bigtiff": lambda folder: tif(folder / "a.tif", bigtiff=True),
    "tiff in strips": lambda folder: tif(folder / "a.tif", compression="zlib", rowsperstrip=5, predictor=True),
    "tiff in tiles": lambda folder: tif(folder / "a.tif", compression="zlib", tile=(16, 32)),
    "tiff in tiles of the other byte order": lambda folder: tif(folder / "a.tif", byteorder=">", tile=(16, 16)),
    "tiff with deep tiles": lambda folder: tif(folder / "a.tif", volumetric=True, tile=(16, 16, 16)),
    "imagej": lambda folder: tif(folder / "a.tif", imagej=True),
    "ome": lambda folder: tif(folder / "a.ome.tif", ome=True, compression="zlib"),
    "zarr 2": lambda folder: zarr_array(folder / "a.zarr", zarr_format=2),
    "zarr 3": lambda folder: zarr_array(folder / "a.zarr", zarr_format=3),
    "hdf5": lambda folder: hdf5(folder / "a.h5"),
    "hdf5 in chunks": lambda folder: hdf5(folder / "a.hdf5", chunks=True, compression="gzip"),
    "npy": lambda folder: npy(folder / "a.npy"),
    "npy of the other order": lambda folder: npy(folder / "a.npy", "F"),
}  # fmt: skip


def regions(size, count=3):
    """Draw regions, the whole and the last voxel among them."""
    yield tuple(slice(None) for _ in size)
    yield tuple(slice(length - 1, length) for length in size)
    for _ in range(count):
        bounds = [sorted(RNG.integers(0, length + 1, 2)) for length in size]
        yield tuple(slice(int(start), int(stop)) for start, stop in bounds)


def assert_reads(volume, expected, count=3):
    assert (volume.channels, *volume.size) == expected.shape
    for region in regions(volume.size, count):
        block = volume.read(region)
        assert block.dtype == expected.dtype
        assert block.dtype.isnative and block.flags.c_contiguous and block.flags.owndata
        assert np.array_equal(block, expected[(slice(None), *region)]), region


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("axes", ["ZYX", "CZYX", "ZCYX"])
def test_every_format_reads_regions_as_numpy_does(tmp_path, name, axes):
    if (name, axes) in (("imagej", "CZYX"), ("tiff with deep tiles", "ZCYX")):
        pytest.skip("this format has no such order")
    expected = VOLUME if "C" in axes else VOLUME[:1]
    stored = GREY if axes == "ZYX" else np.moveaxis(VOLUME, 0, axes.index("C"))
    path = WRITERS[name](tmp_path)(stored, axes)
    volume = open_volume(path, axes=axes if name.startswith("npy") else None)
    assert_reads(volume, expected)
    assert_reads(pickle.loads(pickle.dumps(volume)), expected, 0)


@pytest.mark.parametrize(
    "axes", [*itertools.permutations("CZYX"), *itertools.permutations("TZYX")], ids="".join
)
def test_axes_are_taken_in_any_order_that_the_user_names(axes):
    stored = VOLUME.transpose(["CZYX".index(axis.replace("T", "C")) for axis in axes])
    if "C" in axes:
        assert_reads(open_volume(stored, axes="".join(axes)), VOLUME)
    else:
        assert_reads(open_volume(stored, axes="".join(axes), time=1), VOLUME[1:])


def test_slides_and_single_planes_go_through_the_same_code():
    assert_reads(open_volume(GREY[0]), GREY[:1])
    assert_reads(open_volume(np.moveaxis(VOLUME[:, 0], 0, -1), 2), VOLUME[:, 0])
    assert_reads(open_volume(GREY[0], 3), GREY[None, :1])
    assert open_volume(GREY[:3]).channels == 3
    assert open_volume(GREY[:3], 3).size == (3, 33, 41)


def test_time_points_are_chosen_and_counted(tmp_path):
    movie = RNG.integers(0, 255, (3, 2, 4, 8, 9), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", movie, metadata={"axes": "TCZYX"})
    for time in range(3):
        assert_reads(open_volume(tmp_path / "a.tif", time=time), movie[time])
    with pytest.raises(DataError, match=r"a\.tif: .*3 time points: choose one by time=0 to time=2"):
        open_volume(tmp_path / "a.tif")
    for time in (3, -1):
        with pytest.raises(DataError, match=f"time={time}, but there is 3 time points"):
            open_volume(tmp_path / "a.tif", time=time)
    with pytest.raises(DataError, match="time=1, but there is 1 time point"):
        open_volume(GREY, time=1)


def test_what_the_user_names_wins_over_the_file(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, metadata={"axes": "TYX"})
    assert_reads(open_volume(tmp_path / "a.tif", axes="ZYX"), GREY[None])
    assert_reads(open_volume(tmp_path / "a.tif", axes="CYX", spatial_dims=3), GREY[:, None])
    assert_reads(open_volume(tmp_path / "a.tif", axes="ZXY"), GREY[None].swapaxes(2, 3))


@pytest.mark.parametrize(
    ("axes", "said"),
    [("ZY", "Y and X are always there"), ("ZYXX", "a letter for each"), ("QYX", "out of T, C, Z, Y, X"),
     ("CZYX", "cannot have the axes CZYX; name each of its 3 axes")],
)  # fmt: skip
def test_axes_that_do_not_fit_are_refused(axes, said):
    with pytest.raises(DataError, match=said):
        open_volume(GREY, axes=axes)


def test_arrays_of_a_program_are_volumes(tmp_path):
    assert_reads(open_volume(torch.from_numpy(GREY.astype(np.int32))), GREY[None].astype(np.int32))
    array = zarr.create_array(zarr.storage.MemoryStore(), data=GREY, chunks=(4, 8, 8))
    assert_reads(open_volume(array), GREY[None])
    path = WRITERS["hdf5"](tmp_path)(GREY, "ZYX")
    with h5py.File(path) as file:
        volume = open_volume(file["raw/image"])
        assert_reads(volume, GREY[None])
        assert_reads(pickle.loads(pickle.dumps(volume)), GREY[None])
    with pytest.raises(DataError, match="this is a list"):
        open_volume([[1, 2]])


def test_a_region_outside_of_the_volume_is_refused():
    volume = open_volume(GREY)
    for region in (ALL[:2], (slice(0, 8), *ALL[1:]), (slice(-1, None), *ALL[1:]), (slice(0, 4, 2), *ALL[1:])):
        with pytest.raises(ValueError, match=r"give 3 slices within \(7, 33, 41\)"):
            volume.read(region)


def test_values_that_are_no_numbers_are_refused(tmp_path):
    with pytest.raises(DataError, match="complex64 are no intensities"):
        open_volume(np.zeros((4, 5, 6), np.complex64))
    with pytest.raises(DataError, match="object are no intensities"):
        open_volume(np.full((5, 6), None))
    with pytest.raises(DataError, match="holds no voxel"):
        open_volume(np.zeros((0, 5, 6)), 3)
    np.save(tmp_path / "nan.npy", np.array([[np.nan, 1.0]]))
    assert np.isnan(open_volume(tmp_path / "nan.npy").read(ALL[:2])[0, 0, 0])


def test_options_that_a_format_has_no_use_for_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    with pytest.raises(DataError, match=r"a\.npy: level=1"):
        open_volume(tmp_path / "a.npy", level=1)
    with pytest.raises(DataError, match=r"a\.npy: dataset='raw'"):
        open_volume(tmp_path / "a.npy", dataset="raw")
    with pytest.raises(DataError, match="does not exist"):
        open_volume(tmp_path / "b.npy")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"such formats are .*\.ome\.zarr"):
        open_volume(tmp_path / "a.png")


def test_one_array_of_an_hdf5_file_is_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = GREY
        file["raw"].attrs["element_size_um"] = [2.0, 0.5, 0.25]
        file["more/labels"] = GREY[:2]
    with pytest.raises(DataError, match=r"a\.h5 has 2 arrays: more/labels, raw; name one by dataset=NAME"):
        open_volume(tmp_path / "a.h5")
    with pytest.raises(DataError, match="has no array 'row'"):
        open_volume(tmp_path / "a.h5", dataset="row")
    assert open_volume(tmp_path / "a.h5", 3, dataset="/more/labels").size == (2, 33, 41)
    assert open_volume(tmp_path / "a.h5", dataset="raw").spacing == (2.0, 0.5, 0.25)


def test_imagej_and_ome_files_tell_axes_and_spacing(tmp_path):
    imagej = {"axes": "ZCYX", "spacing": 3.0, "unit": "um"}
    tifffile.imwrite(
        tmp_path / "i.tif", VOLUME.swapaxes(0, 1), imagej=True, resolution=(2, 4), metadata=imagej
    )
    ome = {
        "axes": "CZYX",
        "PhysicalSizeX": 500,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.25,
        "PhysicalSizeZ": 3,
    }
    tifffile.imwrite(tmp_path / "o.ome.tif", VOLUME, photometric="minisblack", ome=True, metadata=ome)
    for name in ("i.tif", "o.ome.tif"):
        volume = open_volume(tmp_path / name)
        assert_reads(volume, VOLUME)
        assert (volume.spacing, volume.unit) == (pytest.approx((3.0, 0.25, 0.5)), "um")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_that_counts_from_white_and_tiff_of_colours(tmp_path, compression):
    plane = GREY[0].astype(np.uint8)
    tifffile.imwrite(tmp_path / "w.tif", plane, photometric="miniswhite", compression=compression)
    assert_reads(open_volume(tmp_path / "w.tif"), read_image(tmp_path / "w.tif").data)
    rgb = np.moveaxis(RNG.integers(0, 255, (3, 33, 41), dtype=np.uint8), 0, -1)
    for planar in ("contig", "separate"):
        stored = rgb if planar == "contig" else np.ascontiguousarray(np.moveaxis(rgb, -1, 0))
        options = {
            "photometric": "rgb",
            "planarconfig": planar,
            "compression": compression,
            "rowsperstrip": 4,
        }
        tifffile.imwrite(tmp_path / "rgb.tif", stored, **options)
        assert_reads(open_volume(tmp_path / "rgb.tif"), np.moveaxis(rgb, -1, 0))


def test_levels_of_pyramids_are_chosen_and_have_larger_voxels(tmp_path):
    with tifffile.TiffWriter(tmp_path / "p.ome.tif") as file:
        metadata = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}
        file.write(GREY[:, :32, :40], subifds=1, tile=(16, 16), metadata=metadata)
        file.write(GREY[:, :32:2, :40:2], subfiletype=1, tile=(16, 16))
    group = zarr.open_group(str(tmp_path / "p.zarr"), mode="w")
    for name, values in (("s0", GREY[:, :32, :40]), ("s1", GREY[:, :32:2, :40:2])):
        group.create_array(name, shape=values.shape, dtype=values.dtype)[:] = values
    scales = [{"type": "scale", "scale": [2.0, 0.5, 0.5]}], [{"type": "scale", "scale": [2.0, 1.0, 1.0]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{
        "axes": [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"],
        "datasets": [{"path": f"s{k}", "coordinateTransformations": scale} for k, scale in enumerate(scales)],
    }]}  # fmt: skip
    for name in ("p.ome.tif", "p.zarr"):
        assert_reads(open_volume(tmp_path / name), GREY[None, :, :32, :40])
        coarse = open_volume(tmp_path / name, level=1)
        assert_reads(coarse, GREY[None, :, :32:2, :40:2])
        assert coarse.spacing == (2.0, 1.0, 1.0)
        with pytest.raises(DataError, match="there is no level 2; it has 2"):
            open_volume(tmp_path / name, level=2)
    assert_reads(open_volume(tmp_path / "p.zarr" / "s1"), GREY[None, :, :32:2, :40:2])


def test_ome_zarr_0_4_with_a_scale_of_all_levels(tmp_path):
    group = zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="w", zarr_format=2)
    group.create_array("0", shape=(1, *VOLUME.shape), dtype=VOLUME.dtype)[:] = VOLUME[None]
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [1, 1, 4, 2, 2]}]
    group.attrs["multiscales"] = [{
        "version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}],
        "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 500, 100, 100]}],
    }]  # fmt: skip
    volume = open_volume(tmp_path / "a.ome.zarr")
    assert_reads(volume, VOLUME)
    assert volume.spacing == pytest.approx((2.0, 0.2, 0.2))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_folder_of_planes_is_a_volume_in_the_order_of_their_numbers(tmp_path, compression):
    volume = RNG.integers(0, 255, (12, 9, 8), dtype=np.uint8)
    for number, plane in enumerate(volume):
        tifffile.imwrite(tmp_path / f"p_{number}.tif", plane, compression=compression)
    (tmp_path / "notes.txt").write_text("")
    assert_reads(open_volume(tmp_path), volume[None])
    assert_reads(pickle.loads(pickle.dumps(open_volume(tmp_path))), volume[None])
    tifffile.imwrite(tmp_path / "p_5.tif", volume[0, :4], compression=compression)
    volume = open_volume(tmp_path)
    volume.read((slice(0, 5), slice(0, 9), slice(0, 8)))
    with pytest.raises(DataError, match=r"p_5\.tif has the shape \(4, 8\)"):
        volume.read((slice(4, 6), slice(0, 9), slice(0, 8)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds a TIFF file per plane; this is neither"):
        open_volume(tmp_path / "empty")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("slope", [None, 0.5])
def test_nifti_is_read_in_part_and_scaled(tmp_path, suffix, slope, caplog):
    nibabel = pytest.importorskip("nibabel")
    path = tmp_path / f"v{suffix}"
    image = nibabel.Nifti1Image(GREY.T.astype(np.int16), np.diag([0.5, 0.25, 3.0, 1]))
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    if slope is not None:
        content = bytearray(gzip.decompress(path.read_bytes()) if suffix == ".nii.gz" else path.read_bytes())
        content[112:120] = np.array([slope, 3], "<f4").tobytes()
        path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    with caplog.at_level(logging.INFO, "pixvox"):
        volume = open_volume(path)
    assert volume.dtype == (np.int16 if slope is None else np.float32)
    assert_reads(volume, read_image(path).data)
    assert (volume.spacing, volume.unit) == ((3.0, 0.25, 0.5), "mm")
    assert ("pixvox data convert" in caplog.text) == (suffix == ".nii.gz")
    assert_reads(pickle.loads(pickle.dumps(volume)), read_image(path).data)


# What is damaged


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.97])
@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zlib"},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"compression": "zlib", "metadata": None},
        {"metadata": None},
        {"truncate": True, "metadata": {"axes": "ZYX"}},
    ],
)
def test_tiff_that_was_cut_off_never_reads_as_fewer_planes(tmp_path, keep, options):
    """Fault 4."""
    path = tmp_path / "volume.tif"
    tifffile.imwrite(path, GREY, **options)
    assert_reads(open_volume(path), GREY[None])
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    if "compression" in options:
        with pytest.raises(DataError, match=r"volume\.tif"):
            open_volume(path).read(ALL)
    else:
        with pytest.raises(DataError, match=r"volume\.tif"):
            open_volume(path)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_that_is_replaced_after_opening_is_refused(tmp_path, compression):
    path = tmp_path / "volume.tif"
    tifffile.imwrite(path, GREY, compression=compression)
    volume = open_volume(path)
    tifffile.imwrite(path, GREY[:3], compression=compression)
    said = "the file has changed" if compression else "cut off"
    with pytest.raises(DataError, match=rf"volume\.tif: .*{said}"):
        pickle.loads(pickle.dumps(volume)).read(ALL)


def test_damaged_strip_is_named_and_the_others_still_read(tmp_path):
    path = tmp_path / "volume.tif"
    tifffile.imwrite(path, GREY, compression="zlib", metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as file:
        start, count = file.pages[4].dataoffsets[0], file.pages[4].databytecounts[0]
    content = bytearray(path.read_bytes())
    content[start : start + count] = bytes(count)
    path.write_bytes(content)
    volume = open_volume(path)
    assert np.array_equal(volume.read((slice(0, 4), *ALL[1:]))[0], GREY[:4])
    with pytest.raises(DataError, match=r"volume\.tif: strip 0 of page 4 is damaged"):
        volume.read((slice(3, 6), *ALL[1:]))


def test_missing_chunks_are_refused_when_they_are_read_or_marked_where_allowed(tmp_path):
    """Fault 21."""
    path = str(tmp_path / "v.zarr")
    array = zarr.create_array(path, shape=(2, 5, 6, 7), chunks=(1, 2, 6, 4), dtype="uint16", fill_value=9)
    array[:, :4] = 5
    array[:, 4:, :, :4] = 5
    array[0] = 5
    volume = open_volume(path, axes="CZYX")
    assert (volume.read((slice(0, 4), *ALL[1:])) == 5).all()
    for region in (ALL, (slice(4, 5), slice(0, 1), slice(3, 5))):
        with pytest.raises(
            DataError, match=r"v\.zarr: chunk c/1/2/0/1 of what is read .*allow_missing_chunks=True"
        ):
            volume.read(region)
    volume = open_volume(path, axes="CZYX", allow_missing_chunks=True)
    expected = np.zeros((5, 6, 7), bool)
    expected[4:, :, 4:] = True
    assert np.array_equal(volume.missing(ALL), expected)
    assert np.array_equal(volume.read(ALL)[1] == 9, expected)
    assert volume.missing((slice(3, 5), slice(0, 1), slice(3, 5))).tolist() == [
        [[False] * 2],
        [[False, True]],
    ]
    assert volume.missing((slice(0, 5), slice(0, 6), slice(0, 4))) is None


def test_missing_tiles_and_hdf5_chunks_are_treated_alike(tmp_path):
    """Fault 21."""

    def tiles():
        yield np.ones((16, 16), np.uint8)
        yield None

    tifffile.imwrite(
        tmp_path / "a.tif", tiles(), shape=(16, 32), dtype=np.uint8, tile=(16, 16), compression="zlib"
    )
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", shape=(16, 32), dtype=np.uint8, chunks=(16, 16))[:, :16] = 1
    for name, piece in (("a.tif", "tile 1 of page 0"), ("a.h5", r"chunk \(0, 1\) of /a")):
        with pytest.raises(DataError, match=piece):
            open_volume(tmp_path / name).read(ALL[:2])
        volume = open_volume(tmp_path / name, allow_missing_chunks=True)
        assert volume.read(ALL[:2])[0, 0].tolist() == [1] * 16 + [0] * 16
        assert volume.missing(ALL[:2])[0].tolist() == [False] * 16 + [True] * 16


@pytest.mark.parametrize(
    "options",
    [{}, {"zarr_format": 2}, pytest.param({"shards": (4, 16, 16)}, marks=in_shards)],
    ids=["3", "2", "sharded"],
)
def test_damaged_chunk_is_named_with_its_array(tmp_path, options):
    """Fault 22."""
    path = tmp_path / "v.zarr"
    zarr.create_array(str(path), data=GREY, chunks=(2, 8, 8), **options)
    key = {"zarr_format": "1.1.1", "shards": "c/0/0/0"}.get(next(iter(options), ""), "c/1/1/1")
    chunk = path / key
    chunk.write_bytes(chunk.read_bytes()[:20])
    volume = open_volume(path)
    assert np.array_equal(volume.read((slice(4, 7), *ALL[1:]))[0], GREY[4:])
    with pytest.raises(DataError, match=rf"v\.zarr: chunk {key} of the Zarr array is damaged"):
        volume.read((slice(2, 5), *ALL[1:]))


# How much is read


def test_a_slide_beyond_the_pixel_limit_is_read_by_its_tiles(tmp_path, monkeypatch):
    """Fault 5."""
    monkeypatch.setattr(lazy_tiff, "MAX_SEGMENT", 1000)
    slide = RNG.integers(0, 255, (160, 320), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "tiles.tif", slide, tile=(16, 32), compression="zlib")
    tifffile.imwrite(tmp_path / "strip.tif", slide, rowsperstrip=160, compression="zlib")
    with pytest.raises(DataError, match=r"strip\.tif: one strip holds 51200 values"):
        open_volume(tmp_path / "strip.tif")
    assert_reads(open_volume(tmp_path / "tiles.tif"), slide[None])


def test_only_the_tiles_of_a_region_are_decoded_and_the_latest_kept(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", GREY, tile=(16, 16), compression="zlib", metadata={"axes": "ZYX"})
    decoded = []
    decode = lazy_tiff._Segments._decode

    def count(self, page, number, segment, lengths):
        decoded.append((number, segment))
        return decode(self, page, number, segment, lengths)

    monkeypatch.setattr(lazy_tiff._Segments, "_decode", count)
    monkeypatch.setattr(lazy_tiff, "CACHE_BYTES", 3 * 16 * 16 * 2)
    volume = open_volume(tmp_path / "a.tif")
    volume.read((slice(2, 4), slice(10, 16), slice(15, 17)))
    assert decoded == [(2, 0), (2, 1), (3, 0), (3, 1)]
    volume.read((slice(3, 4), slice(0, 1), slice(0, 1)))
    assert len(decoded) == 4
    volume.read((slice(2, 3), slice(0, 1), slice(0, 1)))
    assert decoded[4:] == [(2, 0)]
    assert len(volume.array._segments().kept) == 3


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_uncompressed_pages_apart_from_each_other_are_mapped(tmp_path, monkeypatch, byteorder):
    with tifffile.TiffWriter(tmp_path / "a.tif", byteorder=byteorder) as file:
        for plane in GREY:  # each page is followed by its description, as most programs write it
            file.write(plane, contiguous=False, metadata=None, rowsperstrip=plane.shape[0])
    monkeypatch.setattr(lazy_tiff._Segments, "_segment", None)
    volume = open_volume(tmp_path / "a.tif")
    assert isinstance(volume.array, lazy_tiff.TiffPages)
    assert volume.chunks is None
    assert_reads(volume, GREY[None])


@pytest.mark.parametrize("shards", [None, pytest.param((4, 16, 16), marks=in_shards)])
def test_only_the_chunks_of_a_region_are_fetched(tmp_path, monkeypatch, shards):
    zarr.create_array(str(tmp_path / "a.zarr"), data=GREY, chunks=(2, 8, 8), shards=shards)
    volume = open_volume(tmp_path / "a.zarr")
    asked = set()
    get = zarr.storage.LocalStore.get

    async def note(self, key, *arguments, **options):
        asked.add(key)
        return await get(self, key, *arguments, **options)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", note)
    volume.read((slice(2, 4), slice(0, 8), slice(7, 9)))
    assert asked == ({"c/0/0/0"} if shards else {"c/1/0/0", "c/1/0/1"})


def test_an_array_of_a_million_chunks_opens_without_listing_them(tmp_path, monkeypatch):
    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=(2**20, 64, 64), chunks=(16, 8, 8), dtype="uint8"
    )
    array[:16, :8, :8] = 3
    monkeypatch.setattr(os, "walk", None)
    monkeypatch.setattr(os, "scandir", None)
    volume = open_volume(tmp_path / "a.zarr")
    assert (volume.read((slice(0, 16), slice(0, 8), slice(0, 8))) == 3).all()
    assert volume.chunks == (16, 8, 8)


HUGE = """
import resource, sys
import numpy as np
from pixvox.data.volumes.open import open_volume
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    volume = open_volume(path, 3)
    for start in (0, 2000, 3999):
        assert not volume.read((slice(start, start + 1), slice(1000, 1100), slice(0, 100))).any()
assert "torch" not in sys.modules
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_files_beyond_memory_are_read_in_megabytes(tmp_path):
    shape = (4000, 4096, 4096)  # 134 GB of sparse files, each
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint16, shape)
    tifffile.imwrite(tmp_path / "a.tif", shape=shape, dtype=np.uint16, bigtiff=True, metadata={"axes": "ZYX"})
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("a", shape, np.uint16)
        dataset.id.get_offset()
        dataset[-1, -1, -1] = 0
    paths = [str(tmp_path / name) for name in ("a.npy", "a.tif", "a.h5")]
    done = subprocess.run([sys.executable, "-c", HUGE, *paths], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 * 1024  # kB


def test_it_is_public():
    assert pixvox.open_volume is open_volume


def test_a_mapped_file_is_mapped_again_when_it_is_replaced_or_much_of_it_was_read(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.full((8, 8, 8), 1, np.uint16))
    volume, everything = open_volume(tmp_path / "a.npy", 3), (slice(0, 8),) * 3
    part = (slice(0, 1),) * 3
    first = volume.read(part)
    kept = volume.array._map
    assert volume.read(part) == 1 and volume.array._map is kept
    first[:] = 5  # the caller's own
    assert volume.read(part) == 1
    np.save(tmp_path / "b.npy", np.full((8, 8, 8), 2, np.uint16))
    os.replace(tmp_path / "b.npy", tmp_path / "a.npy")
    assert (volume.read(everything) == 2).all()
    monkeypatch.setattr(mapped, "MOST_MAPPED", 1000)
    before = volume.array._map
    assert (volume.read(everything) == 2).all() and volume.array._map is before
    assert (volume.read(everything) == 2).all() and volume.array._map is not before
    assert (pickle.loads(pickle.dumps(volume)).read(everything) == 2).all()
    os.truncate(tmp_path / "a.npy", 200)
    with pytest.raises(DataError, match="gone or cut off"):
        volume.read(part)
