import json
import re
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from pixvox.cli import run
from pixvox.data.images import read_image
from pixvox.data.volumes import convert as module
from pixvox.data.volumes.commands import Dtype
from pixvox.data.volumes.convert import DTYPES, block_lengths, convert, converted
from pixvox.data.volumes.ome_zarr import create_ome_zarr
from pixvox.data.volumes.open import open_volume
from pixvox.data.volumes.volume import Volume
from pixvox.data.volumes.writers import WRITERS
from pixvox.errors import DataError

RNG = np.random.default_rng(0)
VOLUME = RNG.integers(0, 60_000, (2, 9, 20, 31), dtype=np.uint16)  # channels, z, y, x
SPACING = (2.0, 0.5, 0.25)
SUFFIXES = (".zarr", ".ome.tif", ".h5", ".nii", ".nii.gz", ".npy")


def everything(path, **options):
    volume = open_volume(path, **options)
    return volume.read((slice(None),) * len(volume.size))


def in_chunks(suffix, lengths=(4, 8, 8)):
    return {"chunks": lengths} if suffix in (".zarr", ".h5") else {}


@pytest.fixture
def small_blocks(monkeypatch):
    """Let conversions take several blocks."""
    monkeypatch.setattr(module, "BLOCK_BYTES", 4000)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_there_and_back_again_keeps_values_and_spacing(tmp_path, suffix, channels):
    values = VOLUME[:channels]
    first, there, back = tmp_path / "a.tif", tmp_path / f"b{suffix}", tmp_path / "c.zarr"
    metadata = {"axes": "CZYX"} | {
        f"PhysicalSize{axis}": step for axis, step in zip("ZYX", SPACING, strict=True)
    }
    tifffile.imwrite(first, values, photometric="minisblack", ome=True, metadata=metadata, compression="zlib")
    steps = []
    done = convert(
        first, there, **in_chunks(suffix), progress=lambda *step: steps.append(step), pyramid=False
    )
    assert (done.size, done.channels, done.dtype, done.spacing) == ((9, 20, 31), channels, "uint16", SPACING)
    assert steps[-1][1] == steps[-1][2] == len(steps) > 1
    options = {"axes": "CZYX"[-3 - (channels > 1) :]} if suffix == ".npy" else {}
    written = open_volume(there, **options)
    assert np.array_equal(everything(there, **options), values)
    if suffix != ".npy":
        scale = 1000 if written.unit == "mm" else 1
        assert np.multiply(written.spacing, scale) == pytest.approx(SPACING)
    convert(there, back, spacing=SPACING if suffix == ".npy" else None, chunks=(4, 8, 8), **options)
    assert np.array_equal(everything(back), values)
    assert open_volume(back).spacing == pytest.approx(SPACING)
    assert open_volume(back).chunks == (4, 8, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", there.name, "c.zarr"]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("channels", [1, 3])
def test_slides_are_converted_like_volumes(tmp_path, suffix, channels):
    slide = RNG.integers(0, 255, (90, 70, channels), dtype=np.uint8)
    convert(
        slide.squeeze(-1) if channels == 1 else slide,
        tmp_path / f"a{suffix}",
        spatial_dims=2,
        spacing=(0.5, 0.25),
    )
    assert np.array_equal(everything(tmp_path / f"a{suffix}", spatial_dims=2), np.moveaxis(slide, -1, 0))


def test_eager_and_lazy_readers_agree_on_what_is_written(tmp_path):
    for suffix in (".zarr", ".ome.tif", ".nii.gz"):
        convert(VOLUME, tmp_path / f"a{suffix}", axes="CZYX", spacing=SPACING)
        assert np.array_equal(read_image(tmp_path / f"a{suffix}", 3).data, VOLUME)


def test_time_level_and_dataset_are_chosen(tmp_path):
    with h5py.File(tmp_path / "movie.h5", "w") as file:
        file["t"], file["other"] = VOLUME, VOLUME[0]
    convert(tmp_path / "movie.h5", tmp_path / "a.zarr", axes="TZYX", time=1, dataset="t", chunks=(4, 4, 4))
    assert np.array_equal(everything(tmp_path / "a.zarr"), VOLUME[1:])
    convert(np.zeros((4, 600, 300), np.uint8), tmp_path / "b.zarr", spatial_dims=3)
    convert(tmp_path / "b.zarr", tmp_path / "c.npy", level=1)
    assert np.load(tmp_path / "c.npy").shape == (2, 300, 150)


def test_label_images_keep_their_ids_on_every_level_and_are_listed(tmp_path):
    labels = RNG.integers(0, 70_000, (300, 20), dtype=np.int64)
    image = tmp_path / "a.ome.zarr"
    create_ome_zarr(image, (300, 20), "uint8")
    target = image / "labels" / "cells.zarr"
    done = convert(labels, target, labels=True, dtype="uint32")
    assert done.levels == 2
    assert np.array_equal(everything(target, level=1)[0], labels[::2, ::2])
    listed = json.loads((image / "labels" / "zarr.json").read_text())["attributes"]["ome"]["labels"]
    assert listed == ["cells.zarr"]


@pytest.mark.skipif(
    tuple(map(int, zarr.__version__.split(".")[:3])) < (3, 1, 3), reason="older zarr misreads shards"
)
def test_chunks_go_into_files_of_several_when_asked(tmp_path):
    convert(VOLUME, tmp_path / "a.zarr", axes="CZYX", chunks=(4, 8, 8), shards=(8, 16, 32))
    assert np.array_equal(everything(tmp_path / "a.zarr"), VOLUME)
    files = [path for path in (tmp_path / "a.zarr" / "0" / "c").rglob("*") if path.is_file()]
    assert len(files) == 2 * 2 * 2 * 1


def test_what_is_there_is_replaced_when_asked(tmp_path):
    for suffix in (".zarr", ".npy"):
        for values in (VOLUME[0], VOLUME[1]):
            convert(values, tmp_path / f"a{suffix}", force=True)
        assert np.array_equal(everything(tmp_path / f"a{suffix}"), VOLUME[1:])
    assert len(list(tmp_path.iterdir())) == 2


def test_coarse_levels_are_left_out_when_asked(tmp_path):
    slide = np.zeros((600, 20), np.uint8)
    assert convert(slide, tmp_path / "a.zarr").levels == 3
    assert convert(slide, tmp_path / "b.zarr", pyramid=False).levels == 1


@pytest.mark.parametrize(
    ("values", "dtype", "fits"),
    [
        (np.array([0, 255]), "uint8", True),
        (np.array([0, 256]), "uint8", False),
        (np.array([-1], np.int8), "uint8", False),
        (np.array([2**32 - 1]), "uint32", True),
        (np.array([2.0**32]), "uint32", False),
        (np.array([2.0**32], np.float32), "uint32", False),
        (np.array([1.5]), "uint16", False),
        (np.array([np.nan]), "uint16", False),
        (np.array([65535.0], np.float32), "uint16", True),
        (np.array([2**24]), "float32", True),
        (np.array([2**24 + 1]), "float32", False),
        (np.array([2**32 - 1], np.uint32), "float32", False),
        (np.array([2**53 + 1]), "float32", False),
        (np.array([0.1, np.nan, np.inf]), "float32", True),
        (np.array([1e300]), "float32", False),
        (np.array([True, False]), "uint8", True),
    ],
)
def test_values_are_never_wrapped(values, dtype, fits):
    if fits:
        new = converted(values, np.dtype(dtype), "a.tif")
        assert new.dtype == dtype
        assert np.allclose(new.astype(np.float64), values.astype(np.float64), rtol=1e-7, equal_nan=True)
    else:
        with pytest.raises(DataError, match=rf"a\.tif: the value .* does not fit into {dtype}"):
            converted(values, np.dtype(dtype), "a.tif")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_conversion_that_is_interrupted_leaves_what_was_there(tmp_path, suffix, monkeypatch):
    output = tmp_path / f"a{suffix}"
    convert(VOLUME, output, axes="CZYX", spacing=SPACING)
    read, count = Volume.read, []

    def break_off(self, region):
        count.append(region)
        if len(count) == 3:
            raise KeyboardInterrupt
        return read(self, region)

    for target in (output, tmp_path / f"new{suffix}"):
        count.clear()
        with monkeypatch.context() as patched:
            patched.setattr(Volume, "read", break_off)
            with pytest.raises(KeyboardInterrupt):
                convert(VOLUME + 1, target, axes="CZYX", force=True, **in_chunks(suffix))
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    assert np.array_equal(everything(output, axes="CZYX" if suffix == ".npy" else None), VOLUME)


@pytest.mark.parametrize(
    ("size", "read", "written", "expected"),
    [
        ((500, 2000, 2000), (1, 16, 2000), (64, 64, 64), (64, 512, 2000)),
        ((50, 60, 70), None, (64, 64, 64), (50, 60, 70)),
        ((9000, 9000), (256, 256), None, (4096, 9000)),
        ((500, 9000, 9000), (1, 9000, 9000), None, (1, 4500, 9000)),
        ((2000, 2000, 2000), None, (1024, 1024, 1024), (1024, 1024, 1024)),
    ],
)
def test_blocks_are_whole_chunks_and_stay_small(size, read, written, expected):
    lengths = block_lengths(size, read, written, 2)
    assert lengths == expected
    assert all(
        a % b == 0 or a == c for a, b, c in zip(lengths, written or (1,) * len(size), size, strict=True)
    )


@pytest.mark.parametrize(
    ("output", "options", "said"),
    [
        ("a.png", {}, r"a\.png: no format has this suffix; write one of \.ome\.zarr"),
        ("a.tif", {"chunks": (4, 4, 4)}, r"chunks are for \.zarr, \.h5"),
        ("a.h5", {"shards": (4, 4, 4)}, r"shards are for \.zarr"),
        ("a.zarr", {"chunks": (4, 4)}, "give 3 lengths in array order"),
        ("a.zarr", {"chunks": (4, 4, 4), "shards": (6, 4, 4)}, "multiples of the chunks"),
        ("a.zarr", {"spacing": (1, 1)}, "give 3 positive numbers in array order"),
        ("a.zarr", {"spacing": (1, 0, 1)}, "give 3 positive numbers in array order"),
        ("a.zarr", {"dtype": "int7"}, "write one of keep"),
        ("a.zarr", {"dtype": "uint8"}, "does not fit into uint8"),
        ("a.zarr", {"dtype": "float32", "labels": True}, "labels are whole numbers"),
        ("there.npy", {}, "add --force"),
        ("there.npy", {"dataset": "a"}, "names an array of an HDF5 file"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(tmp_path, output, options, said):
    np.save(tmp_path / "there.npy", VOLUME[0])
    with pytest.raises(DataError, match=said):
        convert(VOLUME[0], tmp_path / output, **{"spatial_dims": 3, **options})
    assert [path.name for path in tmp_path.iterdir()] == ["there.npy"]


def test_the_source_is_never_replaced(tmp_path):
    convert(VOLUME[0], tmp_path / "a.zarr")
    for source in (tmp_path / "a.zarr", tmp_path / "a.zarr" / "0"):
        with pytest.raises(DataError, match="is what is read, or holds it"):
            convert(source, tmp_path / "a.zarr", force=True)


@pytest.mark.parametrize("suffix", [".tif", ".nii", ".npy"])
def test_a_disk_without_room_is_refused_before_it_is_full(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(DataError, match=r"0\.0 GiB left"):
        convert(VOLUME, tmp_path / f"a{suffix}", axes="CZYX")
    assert not list(tmp_path.iterdir())


def test_types_that_a_format_lacks_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"OME-TIFF has no values of type uint64.*--dtype"):
        convert(VOLUME[0].astype(np.uint64), tmp_path / "a.tif")


# The command


def test_command_converts_and_reports(tmp_path, capsys):
    np.save(tmp_path / "a.npy", VOLUME[0])
    output = tmp_path / "a b=c,d.ome.zarr"
    line = [
        "data",
        "convert",
        str(tmp_path / "a.npy"),
        str(output),
        "--spacing",
        "2,0.5,0.25",
        "--chunks",
        "4,8,8",
    ]
    assert run([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(output)
    assert (found["size"], found["spacing"], found["levels"]) == ([9, 20, 31], [2.0, 0.5, 0.25], 1)
    assert run([*line, "--force"]) == 0
    assert "9 x 20 x 31, 1 channel of uint16, spacing 2 x 0.5 x 0.25 um, 1 level" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.npy", "b.zarr"], "does not exist"),
        (["a.npy", "b.zarr", "--chunks", "4,x"], "--chunks 4,x"),
        (["a.npy", "b.zarr", "--spacing", "big"], "--spacing big"),
        (["a.npy", "b.zarr", "--axes", "QYX"], "out of T, C, Z, Y, X"),
        (["a.npy", "b.zarr", "--time", "3"], "time=3"),
        (["a.npy", "b.doc"], "no format has this suffix"),
        (["a.npy", "a.npy"], "is what is read"),
        (["a.npy", "b.zarr", "--dtype", "int7"], "int7"),
    ],
)
def test_mistake_gets_one_message_and_code_2(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", VOLUME[0])
    assert run(["data", "convert", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("labels", [False, True])
def test_missing_chunks_are_refused_or_become_zero_and_are_told(tmp_path, capsys, labels):
    """Fault 21."""
    source, out = tmp_path / "a.ome.zarr", tmp_path / "b.ome.tif"
    array = create_ome_zarr(source, (9, 20, 31), np.uint16, (4, 8, 8), labels=labels)
    array[:] = 1 + VOLUME[0]
    (source / "0" / "c" / "1" / "2" / "3").unlink()  # cut off on two axes: 4 x 4 x 7 voxels
    metadata = json.loads((source / "0" / "zarr.json").read_text())
    (source / "0" / "zarr.json").write_text(json.dumps(metadata | {"fill_value": 7}))
    line = ["data", "convert", str(source), str(out), *(["--labels"] if labels else [])]
    assert run(line) == 2
    assert "--allow-missing-chunks" in capsys.readouterr().err and not out.exists()
    assert run([*line, "--allow-missing-chunks", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == 112
    expected = 1 + VOLUME[0]
    expected[4:8, 16:, 24:] = 0
    assert np.array_equal(everything(out)[0], expected)
    assert run([*line, "--allow-missing-chunks", "--force"]) == 0
    assert "112 voxels, 0.02 of all, were never written in" in capsys.readouterr().err


def test_the_command_offers_the_types_that_there_are():
    assert tuple(Dtype) == DTYPES
    assert set(SUFFIXES) < set(WRITERS)


def test_commands_of_the_guide_run(tmp_path, monkeypatch):
    page = Path(__file__).parents[3] / "docs" / "how-to" / "volumes.md"
    lines = re.findall(r"^    pixvox (data convert .*)$", page.read_text(), re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    for name in ("brain.tif", "labels.tif"):
        tifffile.imwrite(name, np.zeros((9, 257, 31), np.uint16), metadata={"axes": "ZYX"})
    with h5py.File("movie.h5", "w") as file:
        file["raw"], file["other"] = VOLUME[None], 0
    Path("planes").mkdir()
    for number in range(3):
        tifffile.imwrite(f"planes/{number}.tif", VOLUME[0, number])
    assert len(lines) == 5
    for line in lines:
        assert run(shlex.split(line)) == 0, line
    assert open_volume("brain.zarr").size == (3, 20, 31)
