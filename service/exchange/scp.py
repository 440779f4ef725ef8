"""C-STORE as SCP: CT instances that known application entities send become jobs, as those of STOW-RS do.

The calling AE title is all that the DICOM network knows of a sender, and anyone can claim it: listen where only your
modalities and PACS can reach.
"""

import shutil
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

import structlog
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import, from a table
from pynetdicom.transport import ThreadedAssociationServer

from service.errors import StudyClosed, UploadTooLarge, VisceraError
from service.exchange.head import identify
from service.exchange.instance import CT_CLASSES, LONGEST_HEAD_BYTES, NotAnInstance
from service.exchange.intake import Intake
from service.settings import Settings

#: What the reader of a job decodes; the first that a sender proposes is taken.
TRANSFER_SYNTAXES: Final = [
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEGLosslessSV1,
    JPEGLossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    HTJ2K,
    RLELossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
]

# Statuses of PS3.4 B.2.3.
SUCCESS: Final = 0x0000
OUT_OF_RESOURCES: Final = 0xA700
NOT_UNDERSTOOD: Final = 0xC000

MAX_ASSOCIATIONS: Final = 20
SILENCE_SECONDS: Final = 60.0
ENDING_SECONDS: Final = 5.0

log = structlog.get_logger(__name__)


class StoreProvider:
    """Listens from `start` to `stop`; each association has a thread of its own."""

    def __init__(self, settings: Settings, intake: Intake) -> None:
        self._settings = settings
        self._intake = intake
        self._server: ThreadedAssociationServer | None = None
        self._scratch: Path | None = None
        self._received: WeakKeyDictionary[Association, int] = WeakKeyDictionary()
        self._entity = AE(ae_title=settings.ae_title)
        self._entity.require_called_aet = True
        self._entity.require_calling_aet = list(settings.scp_callers)
        self._entity.maximum_associations = MAX_ASSOCIATIONS
        self._entity.network_timeout = self._entity.acse_timeout = self._entity.dimse_timeout = SILENCE_SECONDS
        self._entity.add_supported_context(Verification)
        for sop_class in CT_CLASSES:
            self._entity.add_supported_context(sop_class, TRANSFER_SYNTAXES)

    def start(self) -> int:
        """Listen on the address of the settings; returns the port.

        Raises:
            OSError: the address cannot be listened on.
        """
        _config.STORE_RECV_CHUNKED_DATASET = True  # an instance goes to a file while it comes, not to memory
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_DATA_RECV, self._count),
            (evt.EVT_CONN_CLOSE, self._sweep),
            (evt.EVT_ACCEPTED, lambda event: log.info("association.accepted", caller=event.assoc.requestor.ae_title)),
            (evt.EVT_REJECTED, lambda event: log.warning("association.rejected")),
        ]
        self._server = self._entity.start_server(
            (self._settings.scp_host, self._settings.scp_port), block=False, evt_handlers=handlers
        )
        assert self._server is not None
        port = int(self._server.server_address[1])
        self._begin_scratch(self._settings.data_dir / f"scp-{port}")
        return port

    def stop(self) -> None:
        """Listen no longer and end every association."""
        if self._server is not None:
            self._server.shutdown()
        for association in self._entity.active_associations:
            _end(association)
        tempfile.tempdir = None
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _begin_scratch(self, folder: Path) -> None:
        """An empty folder for what is under way; pynetdicom asks tempfile where that goes."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        self._scratch = folder
        tempfile.tempdir = str(folder)

    def _sweep(self, _event: Event) -> None:
        """Remove what broken associations left: one that lives writes at least once in its longest silence."""
        assert self._scratch is not None
        for path in self._scratch.iterdir():
            try:
                if time.time() - path.stat().st_mtime > 2 * SILENCE_SECONDS:
                    path.unlink()
            except FileNotFoundError:
                continue

    def _count(self, event: Event) -> None:
        """Break off a sender whose instance is larger than any upload may be."""
        received = self._received.get(event.assoc, 0) + len(event.data)
        self._received[event.assoc] = received
        if received > self._settings.max_upload_bytes:
            log.warning("association.too_large")
            event.assoc.abort()

    def _store(self, event: Event) -> int:
        received = self._received.get(event.assoc, 0)
        self._received[event.assoc] = 0
        if received > self._settings.max_upload_bytes:
            return OUT_OF_RESOURCES  # broken off, but its last bytes came with it: no job may begin with nothing in it
        try:
            return self._keep(event.dataset_path, event.assoc.requestor.ae_title)
        except NotAnInstance:
            return NOT_UNDERSTOOD
        except (StudyClosed, UploadTooLarge) as refusal:
            log.warning("instance.refused", code=refusal.code)
            return OUT_OF_RESOURCES
        except VisceraError as trouble:
            log.error("instance.not_stored", code=trouble.code, detail=trouble.detail)
            return OUT_OF_RESOURCES
        except Exception as unexpected:  # noqa: BLE001 - the sender gets a status and may try again
            log.error("instance.not_stored", error=type(unexpected).__name__)
            return OUT_OF_RESOURCES

    def _keep(self, path: Path, caller: str) -> int:
        with path.open("rb") as source:
            head = source.read(LONGEST_HEAD_BYTES)
            instance = identify(head, len(head) < LONGEST_HEAD_BYTES)
            if instance is None:
                raise NotAnInstance
            job = self._intake.open(f"c-store/{caller}", instance.study_uid)
            source.seek(0)
            with self._intake.instance(job) as target:
                shutil.copyfileobj(source, target, LONGEST_HEAD_BYTES)
        return SUCCESS


def _end(association: Association) -> None:
    """Abort what is established. Elsewhere the connection ends: before a request and after a refusal there is no
    A-ABORT request (PS3.8, table 9-10: Evt15 in Sta2 and Sta13), and pynetdicom's thread would fail of one."""
    if association.is_established:
        association.abort()
        return
    connection = association.dul.socket
    if connection is not None and connection.socket is not None:
        with suppress(OSError):  # the peer was quicker
            connection.socket.shutdown(socket.SHUT_RDWR)
    association.join(ENDING_SECONDS)
