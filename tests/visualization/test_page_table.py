import json

import numpy as np
import pytest

from pixvox.errors import DataError
from pixvox.visualization.page_table import MAX_TEXT, exact, page_table

HEADER = (
    "id,class,score,size,centroid_x,centroid_y,centroid_z,"
    "x0,y0,z0,x1,y1,z1,touches_border,centroid_x_um,size_um3\n"
)
ROW = "3,nucleus,0.75,12,5.5,4.5,2.0,1,2,0,9,8,4,True,2.75,6.0\n"


def of(tmp_path, text, dims=3, max_rows=10, max_bytes=10**6, encoding="utf-8"):
    (tmp_path / "a, b.csv").write_bytes(text.encode(encoding))
    return page_table(tmp_path / "a, b.csv", dims, max_rows, max_bytes)


def test_measures_are_shown_and_positions_kept_apart(tmp_path):
    table = of(tmp_path, HEADER + ROW)
    assert table.columns == ["id", "class", "score", "size", "touches_border", "size_um3"]
    assert table.rows == [[3, "nucleus", 0.75, 12, "True", 6.0]]
    assert table.places == [(2.0, 4.5, 5.5)] and table.left_out == 0
    assert of(tmp_path, HEADER + ROW, dims=2).places == [(4.5, 5.5)]


def test_rows_of_a_program_are_shown_like_those_of_a_file():
    rows = [{"id": np.int64(3), "size": np.int64(12), "touches_border": np.True_, "note": None}]
    table = page_table(rows, 2, 10, 10**6)
    assert table.columns == ["id", "size", "touches_border", "note"]
    assert table.rows == [[3, 12, "True", ""]] and table.places == [None]


def test_what_json_cannot_hold_becomes_text(tmp_path):
    table = of(tmp_path, "id,a,b,c\n1,nan,inf,-1e400\n2.0,1_000,0x10,12345678901234567890\n")
    assert table.rows[0] == [1, "nan", "inf", "-1e400"]
    assert table.rows[1][:3] == [2, 1000.0, "0x10"]
    json.dumps(table.rows, allow_nan=False)


def test_long_tables_are_cut_and_what_is_left_out_is_counted(tmp_path):
    text = "id,note\n" + "".join(f"{i},{'n' * 300}\n" for i in range(1, 8))
    assert (len(of(tmp_path, text, max_rows=3).rows), of(tmp_path, text, max_rows=3).left_out) == (3, 4)
    short = of(tmp_path, text, max_bytes=500)
    assert (len(short.rows), short.left_out) == (2, 5)
    assert len(short.rows[0][1]) == MAX_TEXT
    assert of(tmp_path, text, max_rows=7).left_out == 0


def test_tables_of_spreadsheets_are_read(tmp_path):
    assert of(tmp_path, "id,class\r\n1,Zelle ä\r\n", encoding="utf-8-sig").rows == [[1, "Zelle ä"]]
    assert of(tmp_path, "id,class\n1\n2,cell,more\n").rows == [[1, ""], [2, "cell"]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("label,size\n1,2\n", "has no column id; give the table that pixvox predict wrote"),
        ("id,size\n1,2\nx1,2\n", "the id of row 2 is 'x1'; ids are whole numbers"),
        ("id,size\n1.5,2\n", "the id of row 1 is '1.5'"),
    ],
)
def test_tables_of_other_things_are_refused(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        of(tmp_path, text)


def test_files_that_are_no_tables_are_refused(tmp_path):
    with pytest.raises(DataError, match="is no table of values between commas"):
        of(tmp_path, "id,class\n1,Zellkörper\n", encoding="latin-1")
    with pytest.raises(DataError, match="there is no such table"):
        page_table(tmp_path / "none.csv", 2, 1, 1)


def test_an_empty_table_has_no_rows(tmp_path):
    assert of(tmp_path, HEADER).rows == [] and of(tmp_path, "").rows == []


def test_numbers_that_javascript_would_round_are_text():
    assert [exact(number) for number in (2**53, 2**53 + 1, 2**64 - 1)] == [
        2**53,
        str(2**53 + 1),
        str(2**64 - 1),
    ]
