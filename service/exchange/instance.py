"""What identifies a DICOM instance, and which instances the service takes from senders."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

#: SOP classes that senders may store here; everything else of a study is of no use to a segmentation.
CT_CLASSES: Final = (
    "1.2.840.10008.5.1.4.1.1.2",  # CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT Image Storage
)

#: How much of an instance may lie before the end of its StudyInstanceUID.
LONGEST_HEAD_BYTES: Final = 1024**2


@dataclass(frozen=True)
class Instance:
    """The UIDs of one instance."""

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str


class NotAnInstance(Exception):
    """The bytes are not a DICOM file with the UIDs that an instance has."""


Identify = Callable[[bytes, bool], Instance | None]
"""The instance that begins with these bytes; None when more are needed. The flag says that there are no more.

Raises:
    NotAnInstance: it is none.
"""
