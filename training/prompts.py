"""The sentences that a text encoder reads: one template, filled with the name of each label."""

from dataclasses import dataclass
from pathlib import Path

from training.text import PUBLISHED_TEMPLATE, TextEmbeddingError

SLOT = "{}"
#: Prompts V1 to V3 of the paper's Table 1, and V3 without its period: what the published features were made with.
TEMPLATES = {
    "V1": "A photo of a {}.",
    "V2": "There is {} in this computerized tomography.",
    "V3": "A computerized tomography of a {}.",
    "published": PUBLISHED_TEMPLATE,
}


class PromptError(TextEmbeddingError):
    """A template, a name or a prompt that no row of features can be made of."""


@dataclass(frozen=True)
class Prompts:
    """A template with one `{}` and the names that fill it, row by row.

    Raises PromptError for a template without or with two `{}`, for no name, an empty one, or one that comes twice.
    """

    template: str
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        slots = self.template.count(SLOT)
        if slots != 1:
            raise PromptError(
                f"Template '{self.template}' has {slots} places {SLOT} for the name; it needs 1. "
                f"Known by name: {', '.join(TEMPLATES)}."
            )
        if not self.names:
            raise PromptError("There is no name to embed.")
        rows: dict[str, int] = {}
        for row, name in enumerate(self.names, start=1):
            if not name.strip():
                raise PromptError(f"Name {row} of {len(self.names)} is empty.")
            # CLIP reads upper and lower case alike: 'Liver' and 'liver' would get the same features.
            first = rows.setdefault(name.strip().casefold(), row)
            if first != row:
                raise PromptError(f"Name {row}, '{name}', is name {first} again; labels could not be told apart.")

    @property
    def sentences(self) -> list[str]:
        """One per name, in their order. Braces other than the one `{}` stay as they are."""
        return [self.template.replace(SLOT, name) for name in self.names]


def read_names(path: Path) -> tuple[str, ...]:
    """The names of a UTF-8 text file, one per line, without the space around them.

    An empty line between names is an empty name, as rows would otherwise shift unseen. Raises PromptError for a file
    that cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path.name} is not a readable list of names: {type(error).__name__}.") from error
    return tuple(line.strip() for line in text.rstrip().splitlines())
