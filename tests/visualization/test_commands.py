import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from label_maps import random_objects
from pixvox.cli import run

SIZE = (5, 20, 30)


@pytest.fixture
def files(tmp_path):
    """A volume, its labels and their table, in a folder with an awkward name."""
    folder = tmp_path / "a=1, b"
    folder.mkdir()
    labels = random_objects(SIZE, 5)
    np.save(folder / "cells.npy", labels * 2.0)
    tifffile.imwrite(
        folder / "cells_labels.ome.tif", labels.astype(np.uint16), ome=True, metadata={"axes": "ZYX"}
    )
    (folder / "cells_table.csv").write_text("id,class\n1,from the table\n")
    return folder


def content(page):
    return json.loads(page.read_text().partition('id="page">')[2].partition("</script>")[0])


def test_the_page_lies_beside_the_labels_and_takes_their_table(files, capsys):
    line = ["view", str(files / "cells.npy"), str(files / "cells_labels.ome.tif"), "--json"]
    assert run(line) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"page": str(files / "cells.html"), "table": str(files / "cells_table.csv")}
    assert content(files / "cells.html")["rows"] == [[1, "from the table"]]
    (files / "other.csv").write_text("id,class\n2,other\n")
    assert run([*line[:-1], "--table", str(files / "other.csv"), "--out", str(files / "x" / "p.HTML")]) == 0
    assert capsys.readouterr().out.strip() == str(files / "x" / "p.HTML")
    assert content(files / "x" / "p.HTML")["rows"] == [[2, "other"]]


def test_pictures_with_palettes_are_shown(tmp_path):
    labels = random_objects((20, 30), 5).astype(np.uint8)
    picture = Image.fromarray(labels).convert("P")
    picture.putpalette(np.random.default_rng(0).integers(0, 255, 768, dtype=np.uint8).tobytes())
    picture.save(tmp_path / "b_labels.png")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "b.PNG")
    assert run(["view", str(tmp_path / "b.PNG"), str(tmp_path / "b_labels.png")]) == 0
    page = content(tmp_path / "b.html")
    assert page["title"] == "b.PNG" and page["shape"] == [1, 20, 30] and page["channels"] == 3
    assert [row[0] for row in page["rows"]] == np.unique(labels)[1:].tolist()


def test_axes_can_be_told(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((20, 30, 4)))
    np.save(tmp_path / "l.npy", np.zeros((20, 30, 4), int))
    assert run(["view", str(tmp_path / "a.npy"), str(tmp_path / "l.npy"), "--axes", "ZYX"]) == 0
    assert content(tmp_path / "l.html")["shape"] == [20, 30, 4]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cells.npy", "small.npy"], "has the size (5, 20, 29)"),
        (["cells.npy", "none.npy"], "none.npy does not exist"),
        (["none.png", "cells_labels.ome.tif"], "none.png does not exist"),
        (["cells.npy", "cells_labels.ome.tif", "--table", "none.csv"], "there is no such table"),
        (
            ["cells.npy", "cells_labels.ome.tif", "--out", "cells_labels.ome.tif"],
            "a page is called NAME.html",
        ),
    ],
)
def test_mistakes_get_one_message_and_leave_no_page(files, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(files)
    np.save("small.npy", np.zeros((5, 20, 29), int))
    before = sorted(files.iterdir())
    assert run(["view", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "Traceback" not in error
    assert sorted(files.iterdir()) == before
