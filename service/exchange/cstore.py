"""C-STORE as SCU: one object at a time to an application entity of the DICOM network."""

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made at import, from a table
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    LabelMapSegmentationStorage,
    RTStructureSetStorage,
    SegmentationStorage,
)

from service.errors import PushFailed
from service.exchange.objects import ResultObject
from service.exchange.peers import DicomNode

RESULT_CLASSES = (
    SegmentationStorage,
    LabelMapSegmentationStorage,
    Comprehensive3DSRStorage,
    RTStructureSetStorage,
    EncapsulatedPDFStorage,
)
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0


class CStoreSender:
    """Stores objects at a node over one association; use it as a context manager."""

    def __init__(self, node: DicomNode, our_title: str) -> None:
        self._node = node
        self._entity = AE(ae_title=our_title)
        self._entity.connection_timeout = CONNECT_SECONDS
        self._entity.acse_timeout = self._entity.dimse_timeout = self._entity.network_timeout = SILENCE_SECONDS
        for sop_class in RESULT_CLASSES:
            self._entity.add_requested_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        self._association: Association | None = None

    def __enter__(self) -> "CStoreSender":
        return self

    def __exit__(self, *_: object) -> None:
        if self._association is not None and self._association.is_established:
            self._association.release()

    def send(self, item: ResultObject) -> None:
        """Store one object; the association is opened for the first and again when it was lost.

        Raises:
            PushFailed: the node did not take it, or could not be reached.
        """
        association = self._established()
        try:
            status = association.send_c_store(item.dataset())
        except (ValueError, RuntimeError, AttributeError) as error:
            raise PushFailed("it does not accept objects of this class") from error
        if not status:
            raise PushFailed("it stopped answering")
        if status.Status != 0x0000 and not 0xB000 <= status.Status <= 0xBFFF:  # those store with a remark
            raise PushFailed(f"it answered with status 0x{status.Status:04X}")

    def _established(self) -> Association:
        if self._association is None or not self._association.is_established:
            self._association = self._entity.associate(self._node.host, self._node.port, ae_title=self._node.ae_title)
        if self._association.is_rejected:
            raise PushFailed("it rejected the association; it may not know our AE title")
        if not self._association.is_established:
            raise PushFailed("nothing answers at its address")
        return self._association
