"""Crops of one physical size from volumes whose voxels differ."""

import json

import numpy as np
import pytest

from catalogues import SIZE, write_volumes
from pixvox.cli import run
from pixvox.data.datamodule import DataModule
from pixvox.data.datasets.catalogue_crops import CatalogueCrops
from pixvox.data.volumes.catalogue import Catalogue
from pixvox.data.volumes.crop_grid import CropGrid
from pixvox.data.volumes.index import build_catalogue, renew_catalogue
from pixvox.data.volumes.ome_zarr import create_ome_zarr
from pixvox.errors import ConfigError, DataError


def _volumes_of_two_spacings(folder):
    """Write 16 um of the same balls in two voxel sizes."""
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for name, spacing in (("fine", (1.0, 0.5, 0.5)), ("coarse", (2.0, 1.0, 0.5))):
        size = [round(16 / step) for step in spacing]
        z, y, x = np.meshgrid(
            *[(np.arange(n) + 0.5) * step for n, step in zip(size, spacing, strict=True)], indexing="ij"
        )
        labels = np.zeros(size, np.uint32)
        for at, value in ((4, 7), (12, 2**31 + 5)):
            labels[(z - at) ** 2 + (y - at) ** 2 + (x - at) ** 2 < 9] = value
        for kind, values in (("images", (labels > 0) * np.uint16(900)), ("labels", labels)):
            array = create_ome_zarr(
                folder / kind / f"{name}.ome.zarr", size, values.dtype, (4, 8, 8), spacing
            )
            array[:] = values


def test_crops_in_micrometres_have_as_many_voxels_as_that_takes_in_each_volume(tmp_path):
    _volumes_of_two_spacings(tmp_path)
    done = build_catalogue(tmp_path, tmp_path / "c.sqlite", (8, 8, 8), size_unit="um")
    assert done.crops == 2 * 8
    catalogue = Catalogue(tmp_path / "c.sqlite")
    sizes = {volume.entry: catalogue.crop_size(volume) for volume in catalogue.volumes.values()}
    assert sizes == {"images/coarse.ome.zarr": (4, 8, 16), "images/fine.ome.zarr": (8, 16, 16)}
    assert not build_catalogue(tmp_path, tmp_path / "c.sqlite", (8, 8, 8), size_unit="um").written
    again = build_catalogue(tmp_path, tmp_path / "c.sqlite", (0.008, 0.008, 0.016), size_unit="mm")
    assert len(again.read) == 2 and again.crops == 2 * 4
    assert not renew_catalogue(tmp_path / "c.sqlite").written


def test_crops_in_micrometres_of_several_volumes_make_one_batch(tmp_path):
    _volumes_of_two_spacings(tmp_path)
    build_catalogue(tmp_path, tmp_path / "c.sqlite", (8, 8, 8), size_unit="um")
    crops = CatalogueCrops(tmp_path / "c.sqlite", foreground=None)
    assert {sample.size for sample in (crops[index] for index in range(len(crops)))} == {
        (4, 8, 16),
        (8, 16, 16),
    }
    data = DataModule(crops, spacing=[1.0, 1.0, 0.5], batch_size=16, size_divisor=1)
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (16, 1, 8, 8, 16)
    assert all(frame.valid_size == (8, 8, 16) for frame in batch.geometries)
    volumes = [float(mask.sum()) / 2 for objects in batch.targets for mask in objects.masks.dense()]
    assert len(volumes) == 4 and all(abs(volume - 113) < 30 for volume in volumes)


def test_a_volume_without_spacing_has_no_crops_in_micrometres(tmp_path):
    write_volumes(tmp_path, count=1)
    with pytest.raises(
        DataError, match=r"v0\.npy does not say how large its voxels are, so crops of 8um,16um,16um"
    ):
        build_catalogue(tmp_path, tmp_path / "c.sqlite", (8, 16, 16), size_unit="um")
    done = build_catalogue(
        tmp_path, tmp_path / "c.sqlite", (8, 16, 16), size_unit="um", spacing=(2.0, 1.0, 1.0)
    )
    assert Catalogue(done.path).select(empty=True).size == done.crops == len(CropGrid(SIZE, (4, 16, 16)))
    with pytest.raises(ConfigError, match="um or mm"):
        build_catalogue(tmp_path, tmp_path / "c.sqlite", (8, 16, 16), size_unit="inch")


def test_the_command_line_takes_micrometres(tmp_path, capsys):
    _volumes_of_two_spacings(tmp_path)
    arguments = [
        "data",
        "index",
        str(tmp_path),
        "--out",
        str(tmp_path / "c.sqlite"),
        "--workers",
        "1",
        "--size",
    ]
    assert run([*arguments, "8um,8um,8um", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["crops"] == 16
    for wrong in ("8um,8,8", "8.5,8,8", "8um,8mm,8um", "large", "8nm,8nm,8nm"):
        assert run([*arguments, wrong]) == 2
        assert "32um,64um,64um" in capsys.readouterr().err
