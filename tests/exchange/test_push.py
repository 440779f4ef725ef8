"""Results on their way to a peer: what is sent again, and what a job says when a peer does not take them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import SegmentationStorage

from service.errors import JobCanceled
from service.exchange import push
from service.exchange.push import push_result
from service.progress import Stage, no_progress
from service.settings import Settings
from tests.support.dicom_result import Result, write_result
from tests.support.http_server import body_of, http_server
from tests.support.orthanc import free_port


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "PAUSES_SECONDS", (0.0, 0.0))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Two SEG and an SR."""
    return write_result(tmp_path_factory.mktemp("result"), outputs=None)


@contextmanager
def stow_peer(statuses: Iterator[int], body: bytes = b"{}") -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """A DICOMweb service that answers with these statuses in turn: its root, and authorization and body of requests."""
    got: list[tuple[str, bytes]] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        got.append((request.headers.get("Authorization", ""), body_of(request)))
        request.send_response(next(statuses))
        request.send_header("Content-Type", "application/dicom+json")
        request.end_headers()
        request.wfile.write(body)

    with http_server(answer) as host:
        yield f"http://{host}/dicom-web", got


def settings_with(**peers: object) -> Settings:
    return Settings.model_validate({"peers": peers})


def test_a_token_is_shown_to_the_peer(result: Result):
    with stow_peer(iter([200] * 3)) as (url, got):
        assert (
            push_result(result.folder, ["pacs"], settings_with(pacs={"url": url, "token": "tok3n"}), no_progress) == []
        )
    assert [authorization for authorization, _ in got] == ["Bearer tok3n"] * 3
    assert all(b"DICM" in body[:400] for _, body in got)


def test_only_what_was_not_taken_is_sent_again(result: Result):
    with stow_peer(iter([200, 503, 500, 200, 200])) as (url, got):
        notices = push_result(result.folder, ["pacs"], settings_with(pacs={"url": url}), no_progress)
    assert notices == []
    bodies = [body.partition(b"DICM")[2].rpartition(b"\r\n--")[0] for _, body in got]
    assert len(set(bodies)) == 3
    assert bodies[1] == bodies[2] == bodies[3]


def test_a_peer_that_refuses_is_a_remark_and_the_next_one_is_served(result: Result):
    with stow_peer(iter([200, 409, 409, 409])) as (bad, _), stow_peer(iter([200] * 3)) as (good, got):
        settings = settings_with(bad={"url": bad}, good={"url": good})
        [notice] = push_result(result.folder, ["bad", "good"], settings, no_progress)
    assert (notice["code"], notice["subject"]) == ("push-failed", "bad")
    assert "2 of 3 DICOM objects" in notice["message"]
    assert "409" in notice["message"]
    assert len(got) == 3


def test_a_failed_instance_in_an_answer_of_200_counts_as_failed(result: Result):
    body = b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [272]}}]}}'
    with stow_peer(iter([200] * 3), body) as (url, _):
        [notice] = push_result(result.folder, ["pacs"], settings_with(pacs={"url": url}), no_progress)
    assert "3 of 3" in notice["message"]


# pynetdicom drops the socket that was refused without closing it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["web", "node"])
def test_a_peer_that_is_away_is_a_remark(result: Result, kind: str):
    port = free_port()
    peers = {
        "web": {"url": f"http://127.0.0.1:{port}"},
        "node": {"ae_title": "AWAY", "host": "127.0.0.1", "port": port},
    }
    [notice] = push_result(result.folder, [kind], settings_with(**peers), no_progress)
    assert "nothing answers" in notice["message"]
    assert str(port) not in notice["message"]


@contextmanager
def node(store: Callable[[evt.Event], int], *, knows: list[str]) -> Iterator[dict[str, object]]:
    """An application entity that takes segmentations only."""
    entity = AE(ae_title="NODE")
    entity.require_calling_aet = knows
    entity.add_supported_context(SegmentationStorage)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    assert server is not None
    try:
        yield {"ae_title": "NODE", "host": "127.0.0.1", "port": server.server_address[1]}
    finally:
        server.shutdown()
        for association in entity.active_associations:  # the sender has released them, or was refused
            association.join(30)


@pytest.mark.parametrize(
    ("status", "knows", "left", "words"),
    [
        (0x0000, ["VISCERA"], 1, "objects of this class"),  # the SR
        (0xB000, ["VISCERA"], 1, "objects of this class"),
        (0xA700, ["VISCERA"], 3, "0xA700"),
        (0x0000, ["SOMEBODY"], 3, "our AE title"),
    ],
)
def test_what_a_node_does_not_take_is_a_remark(result: Result, status: int, knows: list[str], left: int, words: str):
    with node(lambda _: status, knows=knows) as peer:
        [notice] = push_result(result.folder, ["node"], settings_with(node=peer), no_progress)
    assert f"{left} of 3" in notice["message"]
    assert words in notice["message"]


def test_a_result_without_dicom_is_a_remark(tmp_path: Path):
    [notice] = push_result(tmp_path, ["pacs"], settings_with(), no_progress)
    assert notice["code"] == "nothing-to-push"


def test_a_peer_that_is_gone_from_the_settings_is_a_remark(result: Result):
    [notice] = push_result(result.folder, ["pacs"], settings_with(), no_progress)
    assert "VISCERA_PEERS" in notice["message"]


def test_a_cancel_ends_the_sending(result: Result):
    def cancel(stage: Stage, _: float) -> None:
        raise JobCanceled(stage)

    settings = settings_with(pacs={"url": "http://127.0.0.1"})
    with pytest.raises(JobCanceled, match=Stage.SENDING):
        push_result(result.folder, ["pacs"], settings, cancel)
