"""Templates, names, and the sentences that they make."""

from pathlib import Path

import pytest

from training.prompts import TEMPLATES, PromptError, Prompts, read_names
from training.text import TextEmbeddingError


def test_templates_are_those_of_the_paper() -> None:
    assert {key: Prompts(text, ("Liver",)).sentences for key, text in TEMPLATES.items()} == {
        "V1": ["A photo of a Liver."],
        "V2": ["There is Liver in this computerized tomography."],
        "V3": ["A computerized tomography of a Liver."],
        "published": ["A computerized tomography of a Liver"],
    }


def test_names_keep_their_order_and_other_braces_stay() -> None:
    assert Prompts("{{}} {0} {x}", ("spleen", "a{}b")).sentences == ["{spleen} {0} {x}", "{a{}b} {0} {x}"]


@pytest.mark.parametrize(("template", "slots"), [("V4", 0), ("", 0), ("A CT.", 0), ("{} in {}", 2)])
def test_template_needs_one_place_for_the_name(template: str, slots: int) -> None:
    with pytest.raises(PromptError) as refused:
        Prompts(template, ("liver",))
    assert str(refused.value) == (
        f"Template '{template}' has {slots} places {{}} for the name; it needs 1. Known by name: V1, V2, V3, published."
    )


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ((), "There is no name to embed."),
        (("liver", " "), "Name 2 of 2 is empty."),
        (("liver", "spleen", "liver"), "Name 3, 'liver', is name 1 again; labels could not be told apart."),
        (("Liver", "liver "), "Name 2, 'liver ', is name 1 again; labels could not be told apart."),
    ],
)
def test_names_that_give_no_row_of_their_own_are_refused(names: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(TextEmbeddingError) as refused:
        Prompts("{}", names)
    assert str(refused.value) == sentence


def test_names_of_a_file_are_its_lines(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("\ufeffliver\r\n  left kidney \n\nmilz\u00e4\n\n".encode())
    assert read_names(tmp_path / "names.txt") == ("liver", "left kidney", "", "milz\u00e4")


@pytest.mark.parametrize(("content", "reason"), [(None, "FileNotFoundError"), (b"\xff\xfe\x00", "UnicodeDecodeError")])
def test_unreadable_names_are_refused(content: bytes | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(PromptError) as refused:
        read_names(tmp_path / "names.txt")
    assert str(refused.value) == f"names.txt is not a readable list of names: {reason}."
