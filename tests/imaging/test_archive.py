"""Hostile archives: every one ends in a typed error, and nothing is written outside the scratch folder."""

import io
import stat
import zipfile
from pathlib import Path

import pytest

from service.errors import EmptyUpload, UnreadableUpload, UnsafeArchive, UploadTooLarge, VisceraError
from service.imaging.archive import extract_zip
from service.imaging.limits import ReadLimits


def zip_of(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def zip_bytes(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def everything_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_files_keep_their_bytes_and_lose_their_names(tmp_path):
    archive = zip_of(tmp_path / "a.zip", {"series/": b"", "series/Doe^John.dcm": b"one", "series/b": b"two"})
    files = extract_zip(archive, tmp_path / "out", ReadLimits())
    assert [file.read_bytes() for file in files] == [b"one", b"two"]
    assert everything_below(tmp_path / "out") == {"000002", "000003"}


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/etc/evil", "..\\evil", "C:\\evil", "C:evil", "\\\\host\\evil"]
)
def test_names_that_lead_outside_are_refused(tmp_path, name):
    archive = zip_of(tmp_path / "a.zip", {"fine": b"x", name: b"evil"})
    with pytest.raises(UnsafeArchive, match=r"Entry 2 .* outside") as refusal:
        extract_zip(archive, tmp_path / "out")
    assert "evil" not in refusal.value.detail  # names may hold patient data
    assert everything_below(tmp_path) == {"a.zip", "out", "out/000001"}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK])
def test_links_and_devices_are_refused(tmp_path, kind):
    entry = zipfile.ZipInfo("link")
    entry.create_system, entry.external_attr = 3, (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(UnsafeArchive, match="link"):
        extract_zip(tmp_path / "a.zip", tmp_path / "out")


def test_an_encrypted_archive_is_refused(tmp_path):
    raw = bytearray(zip_of(tmp_path / "a.zip", {"x": b"secret"}).read_bytes())
    raw[6] |= 1  # general purpose flag of the local header, and of the central directory
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(raw)
    with pytest.raises(UnreadableUpload, match="without a password"):
        extract_zip(tmp_path / "a.zip", tmp_path / "out")


def test_other_compression_methods_are_refused_by_number(tmp_path):
    archive = zip_of(tmp_path / "a.zip", {"x": b"data" * 100}, zipfile.ZIP_LZMA)
    with pytest.raises(UnreadableUpload, match="method 14"):
        extract_zip(archive, tmp_path / "out")


@pytest.mark.parametrize(
    "entries", [{}, {"folder/": b""}, {"__MACOSX/._a": b"x", ".DS_Store": b"x", "a/._b.dcm": b"x"}]
)
def test_an_archive_without_files_is_empty(tmp_path, entries):
    with pytest.raises(EmptyUpload, match="holds no files"):
        extract_zip(zip_of(tmp_path / "a.zip", entries), tmp_path / "out")


def test_litter_is_left_out(tmp_path):
    archive = zip_of(tmp_path / "a.zip", {"__MACOSX/._scan": b"x", "Thumbs.db": b"x", "scan": b"the scan"})
    assert [file.read_bytes() for file in extract_zip(archive, tmp_path / "out")] == [b"the scan"]


def test_a_bomb_stops_at_the_ratio(tmp_path):
    archive = zip_of(tmp_path / "a.zip", {"zeros": bytes(100 * 1024**2)})
    with pytest.raises(UnsafeArchive, match="200 times its size"):
        extract_zip(archive, tmp_path / "out")
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 66 * 1024**2


def test_expanded_bytes_are_limited_over_all_archives(tmp_path):
    inner = zip_bytes({"x": bytes(600_000)})
    archive = zip_of(tmp_path / "a.zip", {"1.zip": inner, "2.zip": inner})
    with pytest.raises(UploadTooLarge, match="expands to more than"):
        extract_zip(archive, tmp_path / "out", ReadLimits(max_expanded_bytes=2_000_000))
    assert len(extract_zip(archive, tmp_path / "out2", ReadLimits(max_expanded_bytes=3_000_000))) == 2


def test_the_number_of_files_is_limited(tmp_path):
    archive = zip_of(tmp_path / "a.zip", {str(n): b"x" for n in range(11)})
    with pytest.raises(UploadTooLarge, match="more than 10 files"):
        extract_zip(archive, tmp_path / "out", ReadLimits(max_files=10))


@pytest.mark.parametrize("hidden_behind", [b"", b"PK\x05\x06" + bytes(18)])
def test_a_huge_directory_is_refused_before_it_is_parsed(tmp_path, hidden_behind):
    raw = bytearray(zip_of(tmp_path / "a.zip", {"x": b"x"}).read_bytes())
    end = raw.index(b"PK\x05\x06")
    raw[end + 12 : end + 16] = (50_000_000).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(bytes(raw) + hidden_behind)
    with pytest.raises(UploadTooLarge, match="lists more than"):
        extract_zip(tmp_path / "a.zip", tmp_path / "out")


def test_zips_inside_zips_open_two_deep(tmp_path):
    two_deep = zip_bytes({"2.zip": zip_bytes({"x": b"scan"})})
    files = extract_zip(zip_of(tmp_path / "a.zip", {"1.zip": two_deep}), tmp_path / "out")
    assert [file.read_bytes() for file in files] == [b"scan"]
    with pytest.raises(UnsafeArchive, match="nested more than 2"):
        extract_zip(zip_of(tmp_path / "b.zip", {"0.zip": zip_bytes({"1.zip": two_deep})}), tmp_path / "out2")


def test_a_lying_size_does_not_help(tmp_path):
    raw = bytearray(zip_of(tmp_path / "a.zip", {"x": bytes(1_000_000)}).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = raw.index(signature) + offset
        raw[at : at + 4] = (10).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(raw)
    with pytest.raises(UnreadableUpload, match="damaged"):
        extract_zip(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("keep", [10, 60, -30, -5])
def test_a_truncated_archive_is_damaged(tmp_path, keep):
    raw = zip_of(tmp_path / "a.zip", {"x": bytes(range(256)) * 40}).read_bytes()
    (tmp_path / "a.zip").write_bytes(raw[:keep])
    with pytest.raises(VisceraError, match="damaged"):
        extract_zip(tmp_path / "a.zip", tmp_path / "out")
