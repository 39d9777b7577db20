import sys

import numpy as np
import pytest

from pixvox.errors import DataError
from pixvox.table_file import read_rows, rows_of, save_table, table_beside

FIRST = {
    "id": np.array([1, 2]),
    "class": ["cell", "comma, cell"],
    "score": np.array([0.5, 0.25]),
    "touches_border": np.array([True, False]),
}
SECOND = {
    "id": np.array([3]),
    "class": ["cell"],
    "score": np.array([0.125]),
    "touches_border": np.array([True]),
}
ROWS = [*rows_of(FIRST), *rows_of(SECOND)]
EMPTY = {"id": np.zeros(0, np.int64), "class": []}


def test_csv_has_a_header_and_the_rows_of_every_batch(tmp_path):
    path = save_table(tmp_path / "a.csv", iter([FIRST, SECOND]))
    assert [row["class"] for row in read_rows(path)] == ["cell", "comma, cell", "cell"]
    assert path.read_text().splitlines()[1] == "1,cell,0.5,True"
    assert save_table(tmp_path / "b.csv", [EMPTY]).read_text().splitlines() == ["id,class"]


def test_parquet_has_the_same_rows_and_keeps_types(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = save_table(tmp_path / "a.parquet", iter([FIRST, SECOND]))
    assert list(read_rows(path)) == ROWS
    kinds = parquet.read_schema(path)
    assert [str(kind) for kind in kinds.types] == ["int64", "string", "double", "bool"]
    save_table(tmp_path / "b.parquet", [EMPTY])
    assert parquet.read_schema(tmp_path / "b.parquet").names == ["id", "class"]
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="bad.parquet: is no Parquet file"):
        list(read_rows(tmp_path / "bad.parquet"))


def test_parquet_without_its_library_is_told_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow: pip install pixvox\[parquet\]"):
        save_table(tmp_path / "a.parquet", [FIRST])
    assert list(tmp_path.iterdir()) == []


def test_the_table_beside_labels_is_found(tmp_path):
    labels = tmp_path / "a_labels.png"
    assert table_beside(labels, "a") is None
    for name in ("a_table.parquet", "a_table.csv"):
        (tmp_path / name).touch()
        assert table_beside(labels, "a") == tmp_path / name


def test_what_is_no_table_is_told(tmp_path):
    with pytest.raises(DataError, match="there is no such table"):
        list(read_rows(tmp_path / "a.csv"))
