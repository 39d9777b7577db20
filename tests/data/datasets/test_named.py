"""Datasets by the names of their configurations: alone, in a training, and several in one label space."""

import io
import tarfile

import pytest
from omegaconf import OmegaConf

from pixvox.configuration import CONFIG_FOLDER, compose, instantiate
from pixvox.data.datasets.concatenated import open_concatenated
from pixvox.data.datasets.fetch import fetch
from pixvox.data.datasets.named import named_splits, open_named
from pixvox.data.label_space import get_label_space
from pixvox.data.metadata import resolve_metadata
from pixvox.data.relabel import new_names
from pixvox.errors import ConfigError, DataError
from small_datasets import build
from web import serve


@pytest.fixture
def roots(tmp_path, monkeypatch):
    """Name the folders of miniatures in a TOML file."""

    def write(*names):
        for name in names:
            build(tmp_path / name, name)
        lines = [f'{name} = "{name}"' for name in names]
        (tmp_path / "datasets.toml").write_text("\n".join(["[roots]", *lines]))
        monkeypatch.setenv("PIXVOX_DATASETS", str(tmp_path / "datasets.toml"))
        return tmp_path

    return write


def sources_of(name):
    """Return the sources that a configuration joins."""
    return OmegaConf.to_container(
        OmegaConf.load(CONFIG_FOLDER / "data" / f"{name}.yaml").data.train.sources, resolve=True
    )


def test_a_dataset_of_the_toml_file_makes_batches(roots):
    roots("cityscapes")
    data = instantiate(
        compose("train", ["data=cityscapes", "image_size=[32,64]", "batch_size=2"]).data, "data"
    )
    batch = next(iter(data.train_dataloader()))
    assert (batch.images.shape, batch.targets.shape) == ((2, 3, 32, 64), (2, 32, 64))
    assert set(batch.targets.unique().tolist()) <= {18, 255}
    truth = next(iter(data.val_dataloader())).truths[0]
    assert (truth.class_names[18], truth.size) == ("bicycle", (4, 6))


def test_a_name_opens_a_split_and_knows_what_it_lacks(roots):
    folder = roots("lip")
    dataset = open_named("lip", "val", root=folder / "lip")
    assert len(dataset) == 2 and dataset.metadata.flip_pairs == ((14, 15), (16, 17), (18, 19))
    assert named_splits("oxford_pet") == ("train", "test")
    with pytest.raises(DataError, match="data=lip has no split 'test'; it has train, val"):
        open_named("lip", "test")
    with pytest.raises(ConfigError, match="takes no option 'rot'"):
        open_named("lip", rot="x")


def test_people_of_two_datasets_are_one(roots):
    roots("p3m10k", "supervisely_person")
    parts = {split: open_concatenated(sources_of("person"), split) for split in ("train", "val")}
    assert (len(parts["train"]), len(parts["val"])) == (2 + 2, 2)
    assert parts["train"].metadata.class_names == ("background", "person")
    assert {int(parts["train"][index].class_map.max()) for index in range(4)} == {0, 1}


@pytest.mark.parametrize(
    ("name", "spaces", "examples"),
    [
        (
            "dashcam",
            {"cityscapes": "Cityscapes", "bdd100k": "BDD100K", "mapillary": "Mapillary"},
            {("bdd100k", "train"): "train", ("mapillary", "Bicyclist"): "rider", ("mapillary", "Boat"): None},
        ),
        (
            "aerial",
            {"loveda": "LoveDA", "isaid": "iSAID", "potsdam": "ISPRS", "vaihingen": "ISPRS"},
            {("loveda", "forest"): "tree", ("isaid", "ship"): None, ("vaihingen", "car"): "vehicle"},
        ),
    ],
)
def test_every_class_of_datasets_that_are_joined_has_a_place_or_is_ignored(name, spaces, examples):
    common = {None, *OmegaConf.load(CONFIG_FOLDER / "data" / f"{name}.yaml").data.train.class_names}
    sources, reached = sources_of(name), set()
    assert set(sources) == set(spaces)
    for source, space in spaces.items():
        old = resolve_metadata(space)
        new = new_names(old, sources[source].get("mapping") or {})
        assert set(new) <= common
        reached |= set(new)
        for (place, label), wanted in examples.items():
            assert place != source or new[old.class_names.index(label)] == wanted
    assert reached | {None} == common


@pytest.mark.slow
def test_streets_of_three_datasets_have_the_classes_of_one(roots):
    roots("cityscapes", "bdd100k", "mapillary")
    data = instantiate(compose("train", ["data=dashcam"]).data, "data")
    known = get_label_space("Cityscapes")
    assert data.metadata.class_names == known.class_names
    assert data.metadata.colors == known.colors
    assert [sorted(data.train.classes_in(index)) for index in range(6)] == [[], [18], [], [18], [], [0]]
    left = instantiate(compose("train", ["data=dashcam", "data.train.sources.mapillary=null"]).data, "data")
    assert len(left.train) == 4


@pytest.mark.slow
def test_land_of_four_datasets_has_common_classes(roots):
    roots("loveda", "isaid", "potsdam", "vaihingen")
    names = {"potsdam": ["2_10", "2_11"], "vaihingen": ["11", "3"]}
    sources = {
        key: {**value, **({"names": names[key]} if key in names else {})}
        for key, value in sources_of("aerial").items()
    }
    classes = compose("train", ["data=aerial"]).data.train.class_names
    dataset = open_concatenated(sources, class_names=classes)
    shown = [
        {dataset.metadata.class_names[label] for label in dataset.classes_in(index)} for index in range(8)
    ]
    assert shown[:2] == [{"low vegetation"}, set()]
    assert shown[2:4] == [set(), set()]  # background and ships of iSAID
    assert shown[4:6] == [set(), {"vehicle"}]
    assert shown[6:] == [{"tree"}, {"low vegetation"}]


def test_archives_are_fetched_once_and_removed(tmp_path):
    def packed(name):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            archive.addfile(tarfile.TarInfo(f"{name}/empty.txt"))
        return buffer.getvalue()

    with serve({"/images.tar.gz": packed("images"), "/other.tar.gz": packed("else")}) as web:
        archives = [{"url": f"{web.url}/images.tar.gz", "checksum": None, "holds": "images"}]
        for _ in range(2):
            assert fetch("pets", archives, tmp_path / "pets") == tmp_path / "pets"
        assert len(web.asked) == 1
        assert not (tmp_path / "pets" / "images.tar.gz").exists()
        archives = [{"url": f"{web.url}/other.tar.gz", "checksum": None, "holds": "masks"}]
        with pytest.raises(DataError, match="other.tar.gz holds no masks; the archive has changed"):
            fetch("pets", archives, tmp_path / "pets")
    with pytest.raises(DataError, match="cityscapes cannot be downloaded by this program: its terms"):
        open_named("cityscapes", download=True)
