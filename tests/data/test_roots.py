"""Where datasets lie: the argument, then the TOML files, then the common folder."""

import pytest

from pixvox.data.roots import dataset_root, known_roots
from pixvox.errors import DataError


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("PIXVOX_DATASETS", "PIXVOX_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c", "datasets/voc", "home/pixvox"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_the_argument_then_the_nearest_file_then_the_common_folder_count(place):
    assert dataset_root("voc").resolve() == place / "datasets" / "voc"
    (place / "home" / "pixvox" / "datasets.toml").write_text(
        f'[roots]\nvoc = "{place / "a"}"\nlip = "../../b"\n'
    )
    assert dataset_root("voc") == place / "a"
    (place / "datasets.toml").write_text('[roots]\nvoc = "b"\n')
    assert dataset_root("voc").resolve() == place / "b"
    assert dataset_root("lip").resolve() == place / "b"
    assert {name: folder.resolve() for name, folder in known_roots().items()} == dict.fromkeys(
        ("voc", "lip"), place / "b"
    )
    assert dataset_root("voc", place / "c") == place / "c"


def test_a_named_file_stands_for_all_others(place, monkeypatch):
    (place / "datasets.toml").write_text('[roots]\nvoc = "b"\n')
    (place / "other.toml").write_text('[roots]\nvoc = "c"\n')
    monkeypatch.setenv("PIXVOX_DATASETS", str(place / "other.toml"))
    assert dataset_root("voc") == place / "c"
    monkeypatch.setenv("PIXVOX_DATASETS", str(place / "none.toml"))
    with pytest.raises(DataError, match="PIXVOX_DATASETS names .*none.toml, and there is no such file"):
        dataset_root("voc")


def test_what_is_missing_or_wrong_is_said_with_the_repair(place):
    with pytest.raises(DataError, match=r"'lip' lies: give its root .*, or a line lip = \"FOLDER\" under"):
        dataset_root("lip")
    with pytest.raises(
        DataError, match="root says that the dataset 'lip' lies at nowhere, and there is no such"
    ):
        dataset_root("lip", "nowhere")
    for text, message in (
        ("[roots", "no TOML"),
        ("[roots]\nlip = 3\n", r"below \[roots\] stand lines such as"),
    ):
        (place / "datasets.toml").write_text(text)
        with pytest.raises(DataError, match=message):
            dataset_root("lip")
