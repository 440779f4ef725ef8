"""What answers look like: one example for each schema that an operation answers with; a test holds them valid."""

from typing import Any

JOB_ID = "3b241101-e2bb-4255-8caf-4136c566a962"
_ADDRESS = f"/v1/jobs/{JOB_ID}"
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_LIVER = {"scheme": "SCT", "value": "10200004", "meaning": "Liver"}

EXAMPLE_JOB: dict[str, Any] = {
    "id": JOB_ID,
    "status": "running",
    "stage": "inference",
    "percent": 41.5,
    "queue_position": None,
    "eta_seconds": 95,
    "priority": "routine",
    "batch_id": None,
    "cancel_requested": False,
    "attempts": 1,
    "model": "viscera-compact-2.4.2",
    "targets": ["liver", "tumors"],
    "upload_bytes": 51380224,
    "upload_files": 1,
    "created_at": "2026-01-01T12:00:00Z",
    "started_at": "2026-01-01T12:00:01Z",
    "finished_at": None,
    "time_limit_seconds": None,
    "stage_seconds": {},
    "reused_from": None,
    "expires_at": None,
    "expired": False,
    "error": None,
    "warnings": [],
    "links": {"self": _ADDRESS, "cancel": f"{_ADDRESS}/cancel", "findings": None, "artifacts": None},
}

_MODEL: dict[str, Any] = {
    "id": "viscera-compact-2.4.2",
    "name": "viscera-compact",
    "version": "2.4.2",
    "description": "Compact network for CT of the trunk.",
    "intended_use": "Demonstration and tests.",
    "licence": "Apache-2.0",
    "sha256": _SHA256,
    "spacing_mm": [2.0, 2.0, 2.0],
    "precisions": ["fp32", "bf16"],
    "labels": [
        {
            "index": 6,
            "name": "liver",
            "display_name": "Liver",
            "kind": "organ",
            "hosts": [],
            "color": [180, 90, 60],
            "type": _LIVER,
            "laterality": None,
        }
    ],
    "default": True,
}

EXAMPLES: dict[str, Any] = {
    "JobView": EXAMPLE_JOB,
    "JobPage": {"jobs": [EXAMPLE_JOB], "next_cursor": None},
    "ArtifactList": {
        "artifacts": [
            {
                "name": "masks/liver.nii.gz",
                "media_type": "application/gzip",
                "bytes": 182344,
                "sha256": _SHA256,
                "href": f"{_ADDRESS}/artifacts/masks/liver.nii.gz",
            }
        ]
    },
    "ModelView": _MODEL,
    "ModelList": {"models": [_MODEL]},
    "Liveness": {"status": "live"},
    "Readiness": {"status": "ready", "checks": [{"name": "worker", "ready": True, "detail": ""}]},
}
