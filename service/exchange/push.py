"""Results go to the peers that a job names, object by object and with patience.

A peer that does not take an object costs the job nothing but a remark: the result is published and stays.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from service.errors import PushFailed, UnknownPeer
from service.exchange.cstore import CStoreSender
from service.exchange.objects import ResultObject, result_objects
from service.exchange.peers import DicomNode, find_peer
from service.exchange.plan import NOTHING_TO_PUSH
from service.exchange.stow import StowSender
from service.jobs.job import Notice
from service.progress import Progress, Stage
from service.settings import Settings

PAUSES_SECONDS: Final = (1.0, 4.0, 15.0)  # before the second try and so on

log = structlog.get_logger(__name__)


def push_result(result: Path, destinations: Sequence[str], settings: Settings, progress: Progress) -> list[Notice]:
    """Send the DICOM objects in the folder of a published result to each peer; returns a remark on whatever was not.

    Raises:
        JobCanceled: comes through from `progress`.
    """
    if not destinations:
        return []
    objects = result_objects(result)
    if not objects:
        message = "The result has no DICOM objects, so nothing was sent. They are written for DICOM input only."
        return [_notice(NOTHING_TO_PUSH, message, None)]
    notices: list[Notice] = []
    for place, name in enumerate(destinations):
        sending = partial(progress, Stage.SENDING, place / len(destinations))
        try:
            _send_all(objects, name, settings, sending)
        except (PushFailed, UnknownPeer) as failure:
            log.warning("result.not_sent", peer=name, code=failure.code)
            notices.append(_notice(PushFailed.code, failure.detail, name))
        else:
            log.info("result.sent", peer=name, objects=len(objects))
    return notices


def _send_all(
    objects: Sequence[ResultObject],
    name: str,
    settings: Settings,
    sending: Callable[[], None],
) -> None:
    """Send each object to one peer; what it took is not sent again.

    Raises:
        PushFailed: after all tries; the message is whole.
        UnknownPeer: the settings have no such peer (any more).
    """
    left = list(objects)
    pauses = iter(PAUSES_SECONDS)
    with _open_sender(name, settings) as sender:
        while left:
            sending()
            try:
                sender.send(left[0])
                left.pop(0)
            except PushFailed as failure:
                pause = next(pauses, None)
                if pause is None:
                    raise PushFailed(
                        f"{len(left)} of {len(objects)} DICOM objects were not sent to {name!r}: {failure.detail}. The "
                        "result is complete; fetch its artifacts, or have the operator run `viscera push`."
                    ) from failure
                time.sleep(pause)


def _open_sender(name: str, settings: Settings) -> StowSender | CStoreSender:
    peer = find_peer(settings.peers, name)
    return CStoreSender(peer, settings.ae_title) if isinstance(peer, DicomNode) else StowSender(peer)


def _notice(code: str, message: str, subject: str | None) -> Notice:
    return {"code": code, "message": message, "subject": subject}
