"""Hashes that tell whether two submissions are the same."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

from service.request import SegmentationRequest


def hash_of_files(digests: Iterable[bytes]) -> str:
    """SHA-256 of an upload, from the SHA-256 of each file; the order in which the files came does not matter."""
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def request_hash(input_hash: str, fields: Mapping[str, Sequence[str]]) -> str:
    """SHA-256 of a whole submission as the caller wrote it: the files and every field of the form."""
    return _hash({"input": input_hash, "fields": {name: [*values] for name, values in fields.items()}})


def result_key(input_hash: str, bundle_sha256: str, precision: str, request: SegmentationRequest) -> str:
    """SHA-256 of all that a result depends on: input, bundle, the precision it runs in and the caller's choices."""
    choices = request.model_dump(mode="json")
    return _hash({"input": input_hash, "bundle": bundle_sha256, "precision": precision, "request": choices})


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
