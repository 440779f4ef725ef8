"""What a caller means by the targets of a job: labels by name, groups of labels, or codes of structures."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from service.errors import UnknownLabel

CODE_PREFIX = "SCT:"

#: Group -> the kinds of labels in it.
GROUPS: Mapping[str, frozenset[str]] = {
    "all": frozenset({"organ", "tumor", "cyst"}),
    "organs": frozenset({"organ"}),
    "tumors": frozenset({"tumor"}),
    "tumours": frozenset({"tumor"}),
    "cysts": frozenset({"cyst"}),
    "lesions": frozenset({"tumor", "cyst"}),
}


class _Code(Protocol):
    @property
    def value(self) -> str: ...


class _Label(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def type(self) -> _Code: ...


def select(targets: Iterable[str] | None, labels: Sequence[_Label], model: str) -> tuple[str, ...]:
    """Names of the labels that the targets mean, in the order of `labels`; all of them for None.

    A target is the name of a label, a group (`organs`, `tumors`, `cysts`, `lesions`, `all`), or the SNOMED CT code of a
    label's type, as `64033007` or `SCT:64033007`: both kidneys have that of the kidney. `model` names the model in the
    message.

    Raises:
        UnknownLabel: a target means no label of the model.
    """
    if targets is None:
        return tuple(label.name for label in labels)
    chosen: set[str] = set()
    for target in targets:
        meant = _meant(target, labels)
        if not meant:
            known = ", ".join(label.name for label in labels)
            raise UnknownLabel(
                f"{model} has no label, group or code {target[:80]!r}. Groups: {', '.join(GROUPS)}. Labels: {known}."
            )
        chosen |= meant
    return tuple(label.name for label in labels if label.name in chosen)


def _meant(target: str, labels: Sequence[_Label]) -> set[str]:
    named = {label.name for label in labels if label.name == target}
    kinds = GROUPS.get(target, frozenset())
    code = target.removeprefix(CODE_PREFIX)
    return named or {label.name for label in labels if label.kind in kinds or label.type.value == code}
