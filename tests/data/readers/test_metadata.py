from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carefl_secure.data.readers.metadata import read_metadata
from carefl_secure.errors import DataError, LabelError


def jsonl(folder: Path, *rows: object) -> Path:
    path = folder / "metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def csv(folder: Path, text: str) -> Path:
    path = folder / "metadata.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_full_row(tmp_path: Path) -> None:
    (row,) = read_metadata(
        jsonl(
            tmp_path,
            {
                "file_name": "images/a.jpg",
                "labels": ["Peace", "Pain", "Peace"],
                "subject": 7,
                "bbox": [1, 2, 3.5, 4],
                "age": 24.0,
                "height": 1.5,
                "site": "north",
                "glasses": True,
                "eye": [1, 2],
                "gone": None,
                "unknown": float("nan"),
            },
        )
    )
    assert row.file_name == "images/a.jpg"
    assert row.labels == ("Peace", "Pain")
    assert row.several
    assert row.subject == "7"
    assert row.box == (1.0, 2.0, 3.5, 4.0)
    assert row.attributes == {"age": "24", "height": "1.5", "site": "north", "glasses": "True"}


def test_jsonl_keeps_line_separators_inside_words(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text('\ufeff{"file_name": "a\u2028b.jpg", "label": "x"}\r\n\n', encoding="utf-8")
    assert [row.file_name for row in read_metadata(path)] == ["a\u2028b.jpg"]


def test_csv(tmp_path: Path) -> None:
    text = 'file_name,labels,subject,box,site\na.jpg,Peace | Pain,s1,"[0, 0, 4, 4]",north\nb.jpg,,,,"two\nlines"\n'
    first, second = read_metadata(csv(tmp_path, text))
    assert first.labels == ("Peace", "Pain")
    assert first.box == (0, 0, 4, 4)
    assert (second.labels, second.subject, second.box) == ((), None, None)
    assert second.attributes == {"site": "two\nlines"}


@pytest.mark.parametrize(
    "text",
    [
        "file_name,label\na.jpg\n",
        "file_name,label\na.jpg,x,y\n",
        "file_name,label,box\na.jpg,x,1 2 3 d\n",
        'file_name,label\na.jpg,"x\n',
        "label\nx\n",
    ],
)
def test_malformed_csv(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"metadata\.csv line"):
        read_metadata(csv(tmp_path, text))


@pytest.mark.parametrize(
    "name",
    [
        "../up.jpg",
        "images/../../up.jpg",
        "/etc/a.jpg",
        "..\\up.jpg",
        "C:\\a.jpg",
        "c:a.jpg",
        "\\\\host\\share\\a.jpg",
        "",
        ".",
        "..",
        "a\0.jpg",
    ],
)
def test_paths_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="does not stay inside"):
        read_metadata(jsonl(tmp_path, {"file_name": name, "label": "x"}))


@given(name=st.lists(st.sampled_from(["..", ".", "a", "b.jpg", "", "\\", "C:"])).map("/".join))
def test_an_accepted_path_stays_inside(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("paths")
    try:
        (row,) = read_metadata(jsonl(folder, {"file_name": name, "label": "x"}))
    except DataError:
        return
    assert (folder / row.file_name).resolve().is_relative_to(folder.resolve())


@pytest.mark.parametrize("label", [3, "", " ", ["x"], True])
def test_a_label_is_a_word(tmp_path: Path, label: object) -> None:
    with pytest.raises(LabelError, match="line 1"):
        read_metadata(jsonl(tmp_path, {"file_name": "a.jpg", "label": label}))


@pytest.mark.parametrize("labels", ["x", [1], [""], [None], {"x": 1}])
def test_labels_are_a_list_of_words(tmp_path: Path, labels: object) -> None:
    with pytest.raises(LabelError, match="line 1"):
        read_metadata(jsonl(tmp_path, {"file_name": "a.jpg", "labels": labels}))


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"file_name": "a.jpg"}, "either 'label'"),
        ({"file_name": "a.jpg", "label": "x", "labels": ["x"]}, "either 'label'"),
        ({"label": "x"}, "file_name"),
        ({"file_name": 3, "label": "x"}, "file_name"),
        ({"file_name": "a.jpg", "label": "x", "subject": 1.5}, "subject"),
        ({"file_name": "a.jpg", "label": "x", "subject": ["s"]}, "subject"),
        ({"file_name": "a.jpg", "label": "x", "subject": True}, "subject"),
        ({"file_name": "a.jpg", "label": "x", "box": [1, 2, 3]}, "four numbers"),
        ({"file_name": "a.jpg", "label": "x", "box": [1, 2, 3, "4"]}, "four numbers"),
        ({"file_name": "a.jpg", "label": "x", "box": "1 2 3 4"}, "four numbers"),
        ({"file_name": "a.jpg", "label": "x", "box": [5, 5, 5, 9]}, "empty"),
        ({"file_name": "a.jpg", "label": "x", "box": [0, 0, 5, float("nan")]}, "empty"),
        ({"file_name": "a.jpg", "label": "x", "box": [0, 0, 1, 1], "bbox": [0, 0, 1, 1]}, "both"),
        ({"file_name": "a.jpg", "label": "\ud800"}, "surrogates"),
        ({"file_name": "a.jpg", "label": "x", "Split": "test"}, "rename it to split"),
        ({"file_name": "a.jpg", "label": "x", "Subject ": "s"}, "rename it to subject"),
        ({"File Name": "a.jpg", "label": "x"}, "rename it to file_name"),
        ([1], "not an object"),
    ],
)
def test_malformed_rows(tmp_path: Path, row: object, part: str) -> None:
    with pytest.raises(DataError, match=part) as caught:
        read_metadata(jsonl(tmp_path, {"file_name": "ok.jpg", "label": "x"}, row))
    assert "line 2" in str(caught.value)


def test_broken_json_and_broken_text(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"file_name": "a.jpg"\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 1 is not JSON"):
        read_metadata(path)
    path.write_bytes(b'{"file_name": "\xff.jpg"}\n')
    with pytest.raises(DataError, match="UTF-8"):
        read_metadata(path)
