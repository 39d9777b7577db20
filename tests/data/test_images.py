import struct
import zlib

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from pixvox.data.images import convert_channels, list_images, read_image, read_labels, suffix_of
from pixvox.data.readers.raw_array import RawArray, channels_first
from pixvox.errors import DataError

GREY16 = (np.arange(5 * 7, dtype=np.uint16) * 1800).reshape(5, 7)
VOLUME = np.random.default_rng(0).integers(0, 60_000, (4, 5, 7), dtype=np.uint16)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".zarr"])
def test_16_bit_images_keep_their_range(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    if suffix == ".png":
        save(path, GREY16)
    elif suffix == ".tif":
        tifffile.imwrite(path, GREY16)
    elif suffix == ".npy":
        np.save(path, GREY16)
    else:
        zarr.create_array(str(path), data=GREY16)
    data = read_image(path).data
    assert data.dtype == np.uint16
    assert np.array_equal(data, GREY16[None])


RGB = np.random.default_rng(1).integers(0, 255, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("mode", "count"),
    [("L", 1), ("RGB", 3), ("RGBA", 3), ("LA", 1), ("P", 3), ("CMYK", 3), ("1", 1), ("F", 1)],
)
def test_channel_rule_by_mode(tmp_path, mode, count):
    path = tmp_path / ("image.tif" if mode == "F" else "image.jpg" if mode == "CMYK" else "image.png")
    picture = Image.fromarray(RGB).convert(mode)
    picture.save(path)
    data = read_image(path).data
    assert data.shape == (count, 5, 7)
    if mode in ("RGB", "RGBA"):
        assert np.array_equal(data, RGB.transpose(2, 0, 1))


def test_two_channels_are_kept_unless_a_conversion_is_asked_for(tmp_path):
    path = tmp_path / "two.tif"
    tifffile.imwrite(path, np.zeros((2, 5, 7), np.uint16), metadata={"axes": "CYX"})
    assert read_image(path).data.shape == (2, 5, 7)
    with pytest.raises(DataError, match=r"two\.tif: 2 channels cannot become rgb"):
        read_image(path, channels="rgb")


def test_rgb_and_grey_convert_into_each_other():
    grey = np.full((1, 2, 2), 77, np.uint8)
    rgb = convert_channels(grey, "rgb", "")
    assert rgb.shape == (3, 2, 2)
    assert np.array_equal(convert_channels(rgb, "grey", ""), grey)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_image_and_label_map_alike(tmp_path, orientation):
    marked = np.zeros((16, 24), np.uint8)
    marked[:8, :8] = 200
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(save(tmp_path / "i.png", marked, exif=exif)).data[0]
    labels = read_labels(save(tmp_path / "l.png", marked // 200, exif=exif))
    assert image.shape == ((24, 16) if orientation > 4 else (16, 24))
    assert np.array_equal(image > 100, labels > 0)
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert image[corner[orientation]] == 200


def test_truncated_jpeg_is_refused_and_named(tmp_path):
    path = save(tmp_path / "cut.jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(DataError, match=r"cut\.jpg.*cut off"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.npy", "a.nii.gz", "a.zarr"])
def test_zero_byte_files_are_refused_and_named(tmp_path, name):
    if name.endswith(".nii.gz"):
        pytest.importorskip("nibabel")
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=name):
        read_image(tmp_path / name)


def test_missing_and_unknown_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_image(tmp_path / "a.png")
    (tmp_path / "a.docx").write_text("hello")
    with pytest.raises(DataError, match=r"supported are .*\.png"):
        read_image(tmp_path / "a.docx")


def test_pickled_arrays_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="objects"):
        read_image(tmp_path / "a.npy")


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.97])
@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zlib"},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"compression": "zlib", "metadata": None},
    ],
)
def test_truncated_volume_never_reads_as_fewer_planes(tmp_path, keep, options):
    """Fault 4."""
    path = tmp_path / "volume.tif"
    volume = np.random.default_rng(0).integers(0, 60_000, (16, 40, 40), dtype=np.uint16)
    tifffile.imwrite(path, volume, **options)
    assert np.array_equal(read_image(path).data[0], volume)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(DataError, match=r"volume\.tif"):
        read_image(path)


def test_picture_above_the_limit_is_refused_before_decoding(tmp_path):
    """Fault 5."""
    path = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    save(path, np.zeros((2, 2), np.uint8))
    raw = path.read_bytes()
    chunk = b"IHDR" + header
    path.write_bytes(raw[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + raw[33:])
    with pytest.raises(DataError, match="max_pixels=200000000"):  # decoding would fail for lack of data
        read_image(path)


def test_pixel_limit_is_an_option_and_spares_tiled_tiff(tmp_path):
    """Fault 5."""
    image = np.zeros((32, 48), np.uint8)
    tifffile.imwrite(tmp_path / "strips.tif", image)
    tifffile.imwrite(tmp_path / "tiles.tif", image, tile=(16, 16))
    save(tmp_path / "a.png", image)
    for name in ("strips.tif", "a.png"):
        with pytest.raises(DataError, match="max_pixels=1000"):
            read_image(tmp_path / name, max_pixels=1000)
    assert read_image(tmp_path / "tiles.tif", max_pixels=1000).size == (32, 48)


@pytest.mark.parametrize(
    ("options", "spacing"),
    [
        (
            {"imagej": True, "resolution": (2, 4), "metadata": {"axes": "ZYX", "spacing": 3.0, "unit": "um"}},
            (3, 0.25, 0.5),
        ),
        ({"imagej": True, "resolution": (2, 2), "metadata": {"axes": "ZYX", "spacing": 3.0}}, None),
        (
            {
                "ome": True,
                "metadata": {
                    "axes": "ZYX", "PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm",
                    "PhysicalSizeY": 0.25, "PhysicalSizeZ": 3,
                },
            },
            (3, 0.25, 0.5),
        ),
        ({"photometric": "minisblack"}, None),
    ],
    ids=["imagej", "imagej without a unit", "ome", "plain"],
)  # fmt: skip
def test_spacing_of_tiff_in_micrometres(tmp_path, options, spacing):
    path = tmp_path / ("volume.ome.tif" if "ome" in options else "volume.tif")
    tifffile.imwrite(path, VOLUME, **options)
    read = read_image(path, spatial_dims=3)
    assert np.array_equal(read.data[0], VOLUME)
    assert read.spacing == (pytest.approx(spacing) if spacing else None)


@pytest.mark.parametrize(
    ("axes", "shape"),
    [("ZCYX", (4, 2, 5, 7)), ("CZYX", (2, 4, 5, 7)), ("TZCYX", (1, 4, 2, 5, 7)), ("ZYXS", (4, 5, 7, 3))],
)
def test_named_axes_come_out_as_channels_then_z_y_x(tmp_path, axes, shape):
    data = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif", data, metadata={"axes": axes}, photometric="rgb" if "S" in axes else "minisblack"
    )
    read = read_image(tmp_path / "a.tif")
    channel = axes.replace("S", "C").index("C")
    expected = np.moveaxis(data, channel, 0)
    assert np.array_equal(read.data, expected[:, 0] if "T" in axes else expected)


@pytest.mark.parametrize("axes", ["TYX", "CYX"])
def test_planes_named_as_times_or_channels_are_planes_where_a_volume_is_expected(tmp_path, axes):
    volume = np.zeros((9, 5, 7), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", volume, imagej=True, metadata={"axes": axes})
    assert read_image(tmp_path / "a.tif", spatial_dims=3).size == (9, 5, 7)


def test_several_time_points_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 4, 5, 7), np.uint8), metadata={"axes": "TZYX"})
    with pytest.raises(DataError, match="one time point"):
        read_image(tmp_path / "a.tif")


def test_volume_of_one_plane_stays_a_volume(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", VOLUME[0])
    assert read_image(tmp_path / "a.tif", spatial_dims=3).size == (1, 5, 7)
    assert read_image(tmp_path / "a.tif").size == (5, 7)


def test_zarr_with_missing_chunks_is_refused_unless_allowed(tmp_path):
    """Fault 21."""
    path = tmp_path / "v.zarr"
    array = zarr.create_array(str(path), shape=(4, 6, 8), chunks=(2, 6, 8), dtype="uint16")
    array[:2] = 5
    with pytest.raises(DataError, match=r"1 of 2 chunks, the first is c/1/0/0, .*allow_missing_chunks"):
        read_image(path)


@pytest.mark.parametrize("version", [2, 3])
def test_places_of_missing_chunks_are_marked_when_they_are_allowed(tmp_path, version):
    """Fault 21."""
    path = tmp_path / "v.zarr"
    array = zarr.create_array(
        str(path), shape=(5, 6, 7), chunks=(2, 6, 4), dtype="uint16", fill_value=9, zarr_format=version
    )
    array[:4] = 5
    array[4:, :, :4] = 5
    file = read_image(path, 3, allow_missing_chunks=True)
    wanted = np.zeros((5, 6, 7), bool)
    wanted[4:, :, 4:] = True
    assert np.array_equal(file.missing, wanted)
    assert np.array_equal(file.data[0] == 9, wanted)
    array[...] = 5
    assert read_image(path, 3, allow_missing_chunks=True).missing is None


def test_zarr_with_a_damaged_chunk_is_refused(tmp_path):
    """Fault 22."""
    path = tmp_path / "v.zarr"
    zarr.create_array(str(path), data=VOLUME, chunks=(1, *VOLUME.shape[1:]))
    chunk = path / "c" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(DataError, match=r"v\.zarr: chunk c/1/0/0 of the Zarr array is damaged"):
        read_image(path)


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_formats_and_ome_levels_read_alike(tmp_path, version):
    path = tmp_path / "v.ome.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    group.create_array("0", data=VOLUME)
    group.create_array("1", data=VOLUME[:, ::2, ::2])
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [2.0, 0.5, 0.5]}]
    multiscales = [
        {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}, {"path": "1"}]}
    ]
    group.attrs.update(
        {"multiscales": multiscales} if version == 2 else {"ome": {"multiscales": multiscales}}
    )
    read = read_image(path)
    assert np.array_equal(read.data[0], VOLUME)
    assert read.spacing == (2.0, 0.5, 0.5)


def test_nifti_comes_out_as_z_y_x_with_spacing_in_mm(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(VOLUME.T.astype(np.int32), np.diag([0.5, 0.25, 3.0, 1]))
    image.header.set_xyzt_units("mm")
    image.to_filename(tmp_path / "v.nii.gz")
    read = read_image(tmp_path / "v.nii.gz")
    assert np.array_equal(read.data[0], VOLUME)
    assert read.spacing == (3.0, 0.25, 0.5)
    assert read.unit == "mm"


def test_nifti_without_nibabel_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    (tmp_path / "v.nii.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"pip install pixvox\[medical\]"):
        read_image(tmp_path / "v.nii.gz")


def test_labels_are_whole_numbers_of_one_channel(tmp_path):
    np.save(tmp_path / "half.npy", np.array([[0.0, 0.5]]))
    with pytest.raises(DataError, match=r"half\.npy.*0\.5"):
        read_labels(tmp_path / "half.npy")
    np.save(tmp_path / "whole.npy", np.array([[0.0, 7.0]], np.float32))
    assert read_labels(tmp_path / "whole.npy").tolist() == [[0, 7]]
    save(tmp_path / "grey.png", np.repeat(GREY16.astype(np.uint8)[..., None], 3, axis=2))
    assert np.array_equal(read_labels(tmp_path / "grey.png"), GREY16.astype(np.uint8))
    save(tmp_path / "colours.png", RGB)
    with pytest.raises(DataError, match="one channel"):
        read_labels(tmp_path / "colours.png")


def test_palette_pictures_give_indices_as_labels_and_colours_as_images(tmp_path):
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode="P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(tmp_path / "p.png")
    assert read_labels(tmp_path / "p.png").tolist() == [[0, 1], [2, 1]]
    assert read_image(tmp_path / "p.png").data[0].tolist() == [[0, 255], [0, 255]]


def test_files_are_listed_by_name_sorted_and_without_suffix(tmp_path):
    for name in ("b.png", "a.ome.tif", "sub/c.nii.gz", ".hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "v.zarr" / "c").mkdir(parents=True)
    (tmp_path / "v.zarr" / "c" / "0.png").write_bytes(b"")
    assert list(list_images(tmp_path)) == ["a", "b", "sub/c", "v"]
    (tmp_path / "b.tif").write_bytes(b"")
    with pytest.raises(DataError, match="same name"):
        list_images(tmp_path)


def test_paths_with_odd_characters_are_read(tmp_path):
    folder = tmp_path / "a b=c,dé"
    folder.mkdir()
    assert read_image(save(folder / "x y=1,2.png", GREY16)).size == (5, 7)
    assert suffix_of(folder / "x.PNG") == ".png"


def test_image_without_a_pixel_is_refused(tmp_path):
    np.save(tmp_path / "none.npy", np.zeros((0, 64, 3), np.uint8))
    with pytest.raises(DataError, match="none.npy.*no pixel"):
        read_image(tmp_path / "none.npy", 2)


def test_shape_beyond_the_end_of_an_npy_file_asks_for_no_memory(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 20, 24), np.uint8))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(
        content.replace(b"(4, 20, 24), }           ", b"(4000000, 20, 240000), } ")
    )
    with pytest.raises(DataError, match=r"a\.npy: the npy file is damaged"):
        read_image(tmp_path / "a.npy")


def test_npy_header_that_is_no_python_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 20), np.uint8))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content.replace(b"'shape': (4", b"'shape': (("))
    with pytest.raises(DataError, match=r"a\.npy: the npy file is damaged"):
        read_image(tmp_path / "a.npy")


def test_label_map_without_a_pixel_or_without_numbers_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((0, 4, 20, 24), np.uint8))
    with pytest.raises(DataError, match="holds no pixel"):
        read_labels(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.zeros((20, 24), np.complex64))
    with pytest.raises(DataError, match="complex64 are no labels"):
        read_labels(tmp_path / "b.npy")


def test_axes_that_do_not_fit_the_array_are_refused():
    with pytest.raises(DataError, match=r"shape \(20, 24, 3\) cannot have the axes YX"):
        channels_first(RawArray(np.zeros((20, 24, 3)), "YX", {}), None, "a.tif")


def test_strip_that_claims_to_be_longer_than_the_file_asks_for_no_memory(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((20, 24, 3), np.uint8), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path) as file:
        place = file.pages.first.tags["StripByteCounts"].valueoffset
    content = bytearray(path.read_bytes())
    content[place : place + 4] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tif: .* a strip or tile claims"):
        read_image(path)


def test_large_tiff_cut_off_within_its_head_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((20, 24), np.uint8), bigtiff=True)
    path.write_bytes(path.read_bytes()[:12])
    with pytest.raises(DataError, match=r"a\.tif is not a TIFF file"):
        read_image(path)


def test_palette_of_values_that_are_no_indices_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    colormap = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(path, np.zeros((20, 24), np.uint8), photometric="palette", colormap=colormap)
    with tifffile.TiffFile(path) as file:
        offset = file.pages.first.tags["BitsPerSample"].offset
    content = path.read_bytes()
    entry = struct.pack("<HHIHH", 258, 3, 1, 32, 0)
    content = content[:offset] + entry + content[offset + 12 :]
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tif"):
        read_image(path)


@pytest.mark.parametrize("allowed", [False, True])
def test_zarr_whose_shape_asks_for_more_chunks_than_can_be_listed_is_refused(tmp_path, allowed):
    zarr.create_array(str(tmp_path / "v.zarr"), shape=(2**31, 20, 24), chunks=(4, 10, 24), dtype="uint16")
    with pytest.raises(DataError, match=r"asks for 1073741824 chunks, but 1 files are stored"):
        read_image(tmp_path / "v.zarr", allow_missing_chunks=allowed)
