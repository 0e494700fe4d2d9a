from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from carefl_secure.data.checks.examine import examine, skipped_of
from carefl_secure.data.corpora.emotic.mat import load_emotic
from carefl_secure.data.records import EMOTIC, targets
from carefl_secure.data.splits import groups
from carefl_secure.errors import DataError, LabelError
from carefl_secure.progress import SilentReporter


def words(record: Any) -> list[str]:
    return [EMOTIC.labels[k] for k in record.labels]


def test_the_published_layout(make: Any) -> None:
    corpora = load_emotic(make.whole_emotic())
    assert list(corpora) == ["train", "val", "test"]
    train = corpora["train"]
    assert train.name == "emotic-image/train"
    assert train.space is EMOTIC
    assert [r.key for r in train.records] == [
        "mscoco/images/a.jpg",
        "framesdb/images/b.jpg",
        "framesdb/images/b.jpg#2",
    ]
    assert words(train.records[0]) == ["Affection", "Peace"]
    assert train.records[0].attributes == {"gender": "female", "age_group": "adult", "source": "mscoco"}
    assert train.records[0].box == (5, 6, 30, 35)
    assert train.image(0).size == (48, 40)
    assert targets(train).sum() == 5
    assert train.extras["vad"].tolist() == [[6, 5, 7]] * 3
    assert train.stated == {"images": 2, "persons": 3}
    assert train.skipped.total == 0


def test_several_annotators_are_joined_not_intersected_and_their_values_averaged(make: Any) -> None:
    corpora = load_emotic(make.whole_emotic())
    assert words(corpora["val"].records[0]) == ["Anger", "Fear"]
    assert words(corpora["test"].records[0]) == ["Anger", "Doubt/Confusion"]
    # 4 and 5 by the annotators; the combined struct says 1 and is not believed
    assert corpora["test"].extras["vad"][0].tolist() == [4.5, 5, 6]


def test_without_annotators_the_combined_fields_are_used(make: Any, nan: float) -> None:
    person = make.test_person(["Anger"], ["Fear"])
    del person["annotations_categories"], person["annotations_continuous"]
    other = make.test_person(["Peace"])
    del other["annotations_categories"], other["annotations_continuous"]
    root = make.emotic(test=[make.emotic_image("a.jpg", [person, other])])
    corpus = load_emotic(root)["test"]
    assert [words(r) for r in corpus.records] == [["Anger", "Fear"], ["Peace"]]
    assert corpus.extras["vad"].tolist() == [[1, 1, 1]] * 2


def test_a_single_category_and_a_single_person_are_not_taken_apart(make: Any) -> None:
    image = make.emotic_image("a.jpg", [make.train_person(["Fear"])])
    image["person"] = make.train_person(["Fear"])  # a bare struct
    image["person"]["annotations_categories"] = {"categories": "Fear"}  # a bare string
    corpus = load_emotic(make.emotic(train=[image]))["train"]
    assert [words(r) for r in corpus.records] == [["Fear"]]


@pytest.mark.parametrize(
    ("spelled", "meant"),
    [
        ("Disquitement", "Disquietment"),
        ("Doubt/Confuzion", "Doubt/Confusion"),
        ("doubt / confusion", "Doubt/Confusion"),
        ("Affections", "Affection"),
        (" ANGER ", "Anger"),
    ],
)
def test_every_known_spelling_is_mapped_by_name(make: Any, spelled: str, meant: str) -> None:
    image = make.emotic_image("a.jpg", [make.train_person([spelled])])
    assert words(load_emotic(make.emotic(train=[image]))["train"].records[0]) == [meant]


@pytest.mark.parametrize("word", ["Joy", "Happy", "7", "Peace, Anger"])
def test_an_unknown_category_is_refused(make: Any, word: str) -> None:
    image = make.emotic_image("a.jpg", [make.train_person(["Peace", word])])
    with pytest.raises(LabelError, match=r"train image 1 person 1: .*26 categories"):
        load_emotic(make.emotic(train=[image]))


@pytest.mark.parametrize("field", ["gender", "age"])
def test_an_unknown_gender_or_age_is_refused(make: Any, field: str) -> None:
    image = make.emotic_image("a.jpg", [make.train_person(["Peace"], **{field: "Robot"})])
    with pytest.raises(DataError, match=f"the {field} 'Robot' is unknown"):
        load_emotic(make.emotic(train=[image]))


def test_the_early_field_names_are_read_too(make: Any) -> None:
    person = make.train_person(["Peace"])
    person["annotations_gender"] = person.pop("gender")
    person["annotations_age"] = "Teenager"
    del person["age"]
    corpus = load_emotic(make.emotic(train=[make.emotic_image("a.jpg", [person])]))["train"]
    assert corpus.records[0].attributes["gender"] == "female"
    assert corpus.records[0].attributes["age_group"] == "teenager"


@pytest.mark.parametrize("size", [(80, 30), (30, 80)])
def test_boxes_are_cut_at_the_right_side_of_a_long_image(make: Any, size: tuple[int, int]) -> None:
    """A clamp that mistakes width for height would cut one of the two in the middle."""
    width, height = size
    box = np.array([[-4.0, -3.0, width + 9.0, height + 9.0]])
    inner = np.array([[1.0, 1.0, width - 1.0, height - 1.0]])
    persons = [make.train_person(["Peace"], body_bbox=box), make.train_person(["Peace"], body_bbox=inner)]
    root = make.emotic(train=[make.emotic_image("a.jpg", persons, size=size)])
    corpus = load_emotic(root)["train"]
    assert corpus.records[0].box == (0, 0, width, height)
    assert corpus.records[1].box == (1, 1, width - 1, height - 1)
    assert corpus.skipped.remarks == {"box cut to the image": 1}
    person = load_emotic(root, view="person")["train"]
    assert person.image(1).size == (width - 2, height - 2)
    assert person.records[1].box is None


def test_the_image_on_disk_is_believed_about_its_size(make: Any) -> None:
    image = make.emotic_image("a.jpg", [make.train_person(["Peace"])])
    image["image_size"] = {"n_col": 40, "n_row": 48}
    corpus = load_emotic(make.emotic(train=[image]))["train"]
    assert corpus.records[0].box == (5, 6, 30, 35)
    assert corpus.skipped.remarks == {"image has not the size that the annotation states": 1}


@pytest.mark.parametrize("box", [[60, 5, 70, 20], [10, 10, 10, 20], [30, 6, 5, 35]])
def test_a_box_without_anything_in_it_is_left_out_and_counted(make: Any, box: list[int]) -> None:
    persons = [make.train_person(["Peace"], body_bbox=np.array([box], float)), make.train_person(["Anger"])]
    corpus = load_emotic(make.emotic(train=[make.emotic_image("a.jpg", persons)]))["train"]
    assert [r.key for r in corpus.records] == ["mscoco/images/a.jpg#2"]
    assert corpus.skipped.dropped == {"box outside the image or empty": 1}


def test_who_is_left_out_is_counted_by_reason(make: Any, nan: float) -> None:
    vad = {"valence": nan, "arousal": 5.0, "dominance": 5.0}
    images = [
        make.emotic_image("a.jpg", [make.train_person(["Peace"]), make.train_person([])]),
        make.emotic_image("gone.jpg", [make.train_person(["Peace"])], draw=False),
        make.emotic_image("b.jpg", [make.train_person(["Anger"], annotations_continuous=vad)]),
        make.emotic_image("c.jpg", [make.train_person(["Fear"], annotations_continuous=dict.fromkeys(vad, 0.6))]),
    ]
    root = make.emotic(train=images)
    train = load_emotic(root)["train"]
    assert train.skipped.dropped == {
        "no category": 1,
        "image missing": 1,
        "no valence, arousal or dominance": 1,
        "valence, arousal or dominance outside 1 to 10": 1,
    }
    assert train.skipped.examples("image missing") == ("mscoco/images/gone.jpg",)
    assert len(train.records) + train.skipped.total == train.stated["persons"] == 5


def test_a_truncated_image_passes_its_head_and_is_found_by_a_full_read(make: Any) -> None:
    root = make.whole_emotic()
    make.cut_off(root / "emotic" / "framesdb" / "images" / "b.jpg")
    lazy = load_emotic(root)["train"]
    assert len(lazy.records) == 3
    with pytest.raises(DataError, match=r"b\.jpg cannot be read"):
        lazy.image(1)
    checked = examine({"train": lazy}, SilentReporter()).corpora["train"]
    assert len(checked.records) == 1
    assert skipped_of(checked).dropped == {"image cannot be read": 2}


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_four_channel_images_become_rgb(make: Any, mode: str) -> None:
    root = make.whole_emotic()
    path = root / "emotic" / "mscoco" / "images" / "a.jpg"
    Image.open(path).convert(mode).save(path)
    assert load_emotic(root)["train"].image(0).mode == "RGB"


def test_the_image_whose_labels_the_author_gave_later(make: Any) -> None:
    image = make.emotic_image("12ctuwhai2qxczp2wf.jpg", [make.test_person([])], folder="emodb_small/images")
    corpus = load_emotic(make.emotic(test=[image]))["test"]
    assert words(corpus.records[0]) == ["Affection", "Confidence", "Excitement", "Happiness", "Peace", "Sympathy"]
    assert corpus.extras["vad"].tolist() == [[8, 6, 7]]
    assert corpus.skipped.remarks == {"labels as the author gave them later": 1}


def test_persons_of_one_image_stay_together(make: Any) -> None:
    train = load_emotic(make.whole_emotic())["train"]
    assert [1, 2] in groups(train)


def test_the_release_of_2017(make: Any) -> None:
    image = make.emotic_image("a.jpg", [make.train_person(["Peace"])], below="cvpr_emotic")
    root = make.emotic("CVPR17_Annotations.mat", train=[image])
    make.picture(root / "emotic" / "mscoco" / "images" / "other.jpg")
    assert len(load_emotic(root)["train"].records) == 1


def test_annotation_without_images(make: Any) -> None:
    image = make.emotic_image("a.jpg", [make.train_person(["Peace"])], draw=False)
    with pytest.raises(DataError, match="not its images"):
        load_emotic(make.emotic(train=[image]))


def test_an_empty_split_says_why(make: Any) -> None:
    image = make.emotic_image("a.jpg", [make.train_person(["Peace"])], draw=False)
    (make.root / "emotic" / "mscoco").mkdir(parents=True)
    with pytest.raises(DataError, match=r"train is empty \(left out: 1 x image missing\)"):
        load_emotic(make.emotic(train=[image]))


def test_a_name_that_leads_out_of_the_folder(make: Any) -> None:
    image = make.emotic_image("a.jpg", [make.train_person(["Peace"])])
    image["folder"] = "mscoco/../../.."
    with pytest.raises(DataError, match="does not stay inside"):
        load_emotic(make.emotic(train=[image]))


@pytest.mark.parametrize("field", ["person", "filename"])
def test_a_missing_field_is_named(make: Any, field: str) -> None:
    image = make.emotic_image("a.jpg", [make.train_person(["Peace"])])
    del image[field]
    with pytest.raises(DataError, match=f"train lacks the field '{field}'"):
        load_emotic(make.emotic(train=[image]))


@pytest.mark.parametrize("content", [b"", b"not a mat file", b"MATLAB 7.3 MAT-file" + b" " * 200])
def test_a_file_that_is_no_annotation(make: Any, content: bytes) -> None:
    root = make.whole_emotic()
    (root / "Annotations" / "Annotations.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"Annotations\.mat"):
        load_emotic(root)


def test_a_cut_off_annotation(make: Any) -> None:
    root = make.whole_emotic()
    path = root / "Annotations" / "Annotations.mat"
    whole = path.read_bytes()
    for keep in np.linspace(130, len(whole) - 1, 25).astype(int).tolist():
        path.write_bytes(whole[:keep])
        try:
            load_emotic(root)
        except DataError:
            continue
        pytest.fail(f"{keep} bytes of {len(whole)} were taken for the whole annotation")
