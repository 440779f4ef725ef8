"""Which instance a DICOM file is, from its first bytes: a file that still arrives is sorted by its study.

Only the attributes up to StudyInstanceUID are read, with pydicom, and nothing of the patient is kept. Several threads
do so at once, so pydicom is not silenced here, which would change the whole process; the service's logging does it.
"""

import zlib
from io import BytesIO
from typing import Final

from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from service.exchange.instance import LONGEST_HEAD_BYTES, Instance, NotAnInstance
from service.imaging.dicom_files import EXPLICIT_LITTLE_ENDIAN
from service.imaging.dicom_values import is_uid, text

_STUDY_UID_TAG: Final = 0x0020000D
_TAGS: Final[list[BaseTag | int]] = [0x00080016, 0x00080018, _STUDY_UID_TAG]
_META_GROUP_LENGTH_AT: Final = 140  # preamble, prefix, then the element's tag, VR and length
_META_ENDS_AFTER: Final = _META_GROUP_LENGTH_AT + 4


def identify(head: bytes, complete: bool) -> Instance | None:
    """The instance whose file begins with `head`; None when more bytes are needed, which `complete` says there are not.

    Raises:
        NotAnInstance: no DICOM file (PS3.10), or without well-formed UIDs.
    """
    if len(head) >= 132 and head[128:132] != b"DICM":
        raise NotAnInstance
    passed_study_uid = False

    def stop(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        nonlocal passed_study_uid
        passed_study_uid = int(tag) > _STUDY_UID_TAG
        return passed_study_uid

    try:
        dataset: Dataset = read_partial(BytesIO(_inflated(head)), stop_when=stop, specific_tags=_TAGS)
        if not passed_study_uid and not complete:
            return None
        found = Instance(*(text(dataset, name) for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID")))
    except Exception as error:  # a damaged or cut header surfaces as almost any exception of pydicom
        if not complete and len(head) < LONGEST_HEAD_BYTES:
            return None
        raise NotAnInstance from error
    if not all(map(is_uid, (found.sop_class_uid, found.sop_instance_uid, found.study_uid))):
        raise NotAnInstance
    return found


def _inflated(head: bytes) -> bytes:
    """The beginning of a deflated file as one of Explicit VR Little Endian, within a bound; other files as they are."""
    if len(head) < _META_ENDS_AFTER:
        return head
    meta_end = _META_ENDS_AFTER + int.from_bytes(head[_META_GROUP_LENGTH_AT:_META_ENDS_AFTER], "little")
    if DeflatedExplicitVRLittleEndian.encode() not in head[_META_ENDS_AFTER:meta_end]:
        return head
    plain = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head[meta_end:], LONGEST_HEAD_BYTES)
    return EXPLICIT_LITTLE_ENDIAN + plain
