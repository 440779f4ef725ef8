"""Everything that can go wrong, as a tree.

    VisceraError
    ├── InputError                    the caller can mend it: HTTP 4xx, job `failed`
    │   ├── UnreadableUpload          unreadable-upload
    │   │   ├── EmptyUpload           empty-upload
    │   │   ├── UnsafeArchive         unsafe-archive
    │   │   └── UploadTooLarge        upload-too-large
    │   ├── UnsupportedModality       unsupported-modality
    │   ├── SeriesNotFound            series-not-found
    │   ├── MultiplePatients          multiple-patients
    │   ├── UnsupportedVolume         unsupported-volume
    │   ├── TooFewSlices              too-few-slices
    │   ├── InvalidGeometry           invalid-geometry
    │   │   └── MissingSlices         missing-slices
    │   ├── NotHounsfield             not-hu
    │   ├── DecodeFailed              decode-failed
    │   ├── ReferenceNotFound         reference-not-found
    │   └── OutputNotPossible         output-not-possible
    ├── BundleError                   the bundle was refused
    │   ├── BundleNotFound            bundle-not-found
    │   ├── BundleInvalid             bundle-invalid
    │   ├── BundleTampered            bundle-tampered
    │   ├── UnknownSchemaVersion      bundle-schema-version
    │   └── SelfTestFailed            bundle-self-test
    ├── RequestError                  the request itself is off
    │   ├── Unauthenticated           unauthenticated
    │   ├── InsufficientScope         insufficient-scope
    │   ├── RateLimited               rate-limited
    │   │   └── QuotaExceeded         quota-exceeded
    │   ├── BodyTooLarge              body-too-large
    │   ├── RequestTooSlow            request-too-slow
    │   ├── CallbackRefused           callback-refused
    │   ├── KeyNotFound               key-not-found
    │   ├── JobNotFound               job-not-found
    │   ├── ArtifactNotFound          artifact-not-found
    │   ├── ModelNotFound             model-not-found
    │   ├── UnknownLabel              unknown-label
    │   ├── ReferenceRefused          reference-refused
    │   ├── UnknownPeer               unknown-peer
    │   ├── ResultNotReady            result-not-ready
    │   ├── ResultExpired             result-expired
    │   ├── IdempotencyConflict       idempotency-conflict
    │   └── IllegalTransition         illegal-transition
    └── ServiceError                  the service's own trouble: try again or tell the operator
        ├── EngineUnavailable         engine-unavailable
        │   └── InsufficientDeviceMemory  insufficient-device-memory
        ├── InsufficientMemory        insufficient-memory
        ├── StorageUnavailable        storage-unavailable
        │   └── UploadGone            upload-gone
        ├── ReferenceUnreachable      reference-unreachable
        ├── StudyClosed               study-closed
        ├── PushFailed                push-failed
        ├── IdentityProviderUnavailable  identity-provider-unavailable
        ├── SchemaTooNew              schema-too-new
        ├── JobCanceled               job-canceled
        ├── TimeLimitExceeded         time-limit-exceeded
        ├── WorkerLost                worker-lost
        ├── VerificationFailed        artifact-verification-failed
        └── InternalError             internal

Each class carries its stable `code` (the last path segment of the RFC 9457 problem `type`), its HTTP status and its
title. The message names the thing, the value and the remedy, and never holds patient data, a path of the server or a
traceback.
"""

from typing import ClassVar


class VisceraError(Exception):
    """A failure with a stable code that a caller can act on."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Unexpected failure"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InputError(VisceraError):
    """The uploaded data cannot be segmented as it is."""

    code = "invalid-input"
    status = 422
    title = "The upload cannot be segmented"


class UnreadableUpload(InputError):
    """The bytes are not a NIfTI volume, a zip or DICOM."""

    code = "unreadable-upload"
    status = 415
    title = "The upload is not a readable CT"


class EmptyUpload(UnreadableUpload):
    """Nothing arrived: no file, a 0-byte file or an empty archive."""

    code = "empty-upload"
    status = 422
    title = "The upload is empty"


class UnsafeArchive(UnreadableUpload):
    """The archive names files outside itself, links, or expands out of proportion."""

    code = "unsafe-archive"
    status = 422
    title = "The archive was refused as unsafe"


class UploadTooLarge(UnreadableUpload):
    """More bytes or files than the service accepts."""

    code = "upload-too-large"
    status = 413
    title = "The upload is too large"


class UnsupportedModality(InputError):
    """There is no CT image series in the upload."""

    code = "unsupported-modality"
    title = "No CT series found"


class SeriesNotFound(InputError):
    """The upload has no CT series with the SeriesInstanceUID that was asked for."""

    code = "series-not-found"
    title = "The series asked for is not in the upload"


class MultiplePatients(InputError):
    """The files belong to more than one patient or study."""

    code = "multiple-patients"
    title = "More than one patient in the upload"


class UnsupportedVolume(InputError):
    """The array is not a single three-dimensional scalar volume."""

    code = "unsupported-volume"
    title = "The volume has an unsupported form"


class TooFewSlices(InputError):
    """The series is too short to be segmented."""

    code = "too-few-slices"
    title = "Too few slices"


class InvalidGeometry(InputError):
    """The position or orientation of the voxels is missing, contradictory or not yet supported."""

    code = "invalid-geometry"
    title = "The geometry of the scan is not usable"


class MissingSlices(InvalidGeometry):
    """More slices are missing than may be interpolated."""

    code = "missing-slices"
    title = "Slices are missing"


class NotHounsfield(InputError):
    """The intensities are not Hounsfield units."""

    code = "not-hu"
    title = "The intensities are not in Hounsfield units"


class DecodeFailed(InputError):
    """The pixel data could not be decompressed or are cut short."""

    code = "decode-failed"
    title = "The pixel data could not be decoded"


class ReferenceNotFound(InputError):
    """The PACS that a reference names does not have the study or series."""

    code = "reference-not-found"
    title = "The referenced study does not exist"


class OutputNotPossible(InputError):
    """A file that was asked for cannot be written for this input."""

    code = "output-not-possible"
    title = "An output is not possible for this upload"


class BundleError(VisceraError):
    """The model bundle was refused."""

    code = "bundle-error"
    title = "The model bundle was refused"


class BundleNotFound(BundleError):
    """No bundle at the given path or of the given name."""

    code = "bundle-not-found"
    title = "Bundle not found"


class PullFailed(BundleError):
    """Published weights could not be fetched or made into a bundle."""

    code = "pull-failed"
    title = "The model could not be pulled"


class ModelInUse(BundleError):
    """The model cannot be removed: it came with the package, or is the default."""

    code = "model-in-use"
    title = "The model cannot be removed"


class BundleInvalid(BundleError):
    """The manifest or a file of the bundle does not follow the schema."""

    code = "bundle-invalid"
    title = "The bundle does not follow its schema"


class PrecisionNotOffered(BundleError):
    """The bundle does not offer the precision asked for, or not for the engine."""

    code = "precision-not-offered"
    title = "The bundle does not offer this precision"


class BundleTampered(BundleError):
    """A file's SHA-256 differs from the manifest's."""

    code = "bundle-tampered"
    title = "A file of the bundle was altered"


class UnknownSchemaVersion(BundleError):
    """The bundle was written for another version of the service."""

    code = "bundle-schema-version"
    title = "Unknown bundle schema version"


class SelfTestFailed(BundleError):
    """The engine does not reproduce the bundle's sample logits on this machine."""

    code = "bundle-self-test"
    title = "The bundle's self-test failed"


class RequestError(VisceraError):
    """The request names something that does not exist or does not fit."""

    code = "invalid-request"
    status = 400
    title = "The request is not valid"


class Unauthenticated(RequestError):
    """The request has no API key or token, or one that is unknown, expired or revoked."""

    code = "unauthenticated"
    status = 401
    title = "Authentication is required"


class InsufficientScope(RequestError):
    """The API key or token does not have the scope that the operation needs."""

    code = "insufficient-scope"
    status = 403
    title = "The key does not allow this"


class RateLimited(RequestError):
    """The key has made more requests in a minute than it may; try again after Retry-After."""

    code = "rate-limited"
    status = 429
    title = "Too many requests"

    def __init__(self, detail: str, retry_after_seconds: int) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class QuotaExceeded(RateLimited):
    """The key has as many unfinished jobs as it may; submit again when one of them has ended."""

    code = "quota-exceeded"
    title = "Too many unfinished jobs"


class BodyTooLarge(RequestError):
    """The body is larger than this address reads."""

    code = "body-too-large"
    status = 413
    title = "The request is too large"


class RequestTooSlow(RequestError):
    """The body arrived too slowly, or stopped arriving."""

    code = "request-too-slow"
    status = 408
    title = "The request arrived too slowly"


class CallbackRefused(RequestError):
    """The service does not send webhooks to this address, or sends none at all."""

    code = "callback-refused"
    status = 422
    title = "The callback address is refused"


class KeyNotFound(RequestError):
    """No API key of that id."""

    code = "key-not-found"
    status = 404
    title = "API key not found"


class JobNotFound(RequestError):
    """No job of that id."""

    code = "job-not-found"
    status = 404
    title = "Job not found"


class ArtifactNotFound(RequestError):
    """The job has no artifact of that name."""

    code = "artifact-not-found"
    status = 404
    title = "Artifact not found"


class ModelNotFound(RequestError):
    """No model of that name is served."""

    code = "model-not-found"
    status = 404
    title = "Model not found"


class UnknownLabel(RequestError):
    """The request asks for a label that the model does not have."""

    code = "unknown-label"
    status = 422
    title = "Unknown label"


class ReferenceRefused(RequestError):
    """The service does not follow this reference: its settings do not allow the host, or it names no study."""

    code = "reference-refused"
    status = 403
    title = "The reference was refused"


class UnknownPeer(RequestError):
    """The settings have no peer of that name."""

    code = "unknown-peer"
    status = 422
    title = "Unknown peer"


class ResultNotReady(RequestError):
    """The job has not succeeded, so it has no result."""

    code = "result-not-ready"
    status = 409
    title = "The result is not ready"


class ResultExpired(RequestError):
    """The result was removed when its time was over; submit the study again."""

    code = "result-expired"
    status = 410
    title = "The result has expired"


class IdempotencyConflict(RequestError):
    """The Idempotency-Key came before, with another request."""

    code = "idempotency-conflict"
    status = 409
    title = "The idempotency key was used for another request"


class IllegalTransition(RequestError):
    """The job's state does not allow the change."""

    code = "illegal-transition"
    status = 409
    title = "The job's state does not allow this"


class ServiceError(VisceraError):
    """The service's own trouble; the input may be fine."""

    code = "service-error"
    status = 503
    title = "The service could not do the work"


class EngineUnavailable(ServiceError):
    """No inference engine can run the bundle on this machine."""

    code = "engine-unavailable"
    title = "No inference engine available"


class InsufficientDeviceMemory(EngineUnavailable):
    """The GPU has too little memory for the scan, and no engine of the CPU can run the bundle."""

    code = "insufficient-device-memory"
    title = "Not enough memory on the GPU"


class InsufficientMemory(ServiceError):
    """The scan would not fit into the worker's memory."""

    code = "insufficient-memory"
    title = "Not enough memory for this scan"


class StorageUnavailable(ServiceError):
    """The storage or the database cannot be reached or is full."""

    code = "storage-unavailable"
    title = "Storage unavailable"


class ReferenceUnreachable(ServiceError):
    """The PACS that a reference names did not deliver the study."""

    code = "reference-unreachable"
    status = 502
    title = "The referenced study could not be fetched"


class StudyClosed(ServiceError):
    """The job of a study that still arrived has begun; a late instance begins another."""

    code = "study-closed"
    title = "The study's job has already begun"


class PushFailed(ServiceError):
    """A peer did not take the results."""

    code = "push-failed"
    status = 502
    title = "The results could not be sent"


class UploadGone(StorageUnavailable):
    """The upload of a job is no longer stored, so the job cannot run."""

    code = "upload-gone"
    status = 500
    title = "The upload is no longer stored"


class IdentityProviderUnavailable(ServiceError):
    """The keys of the identity provider cannot be fetched, so its tokens cannot be checked."""

    code = "identity-provider-unavailable"
    title = "Identity provider unavailable"


class SchemaTooNew(ServiceError):
    """A newer version of the service has upgraded the job table."""

    code = "schema-too-new"
    title = "The database belongs to a newer version"


class JobCanceled(ServiceError):
    """The job was stopped at the caller's request."""

    code = "job-canceled"
    status = 409
    title = "The job was canceled"


class TimeLimitExceeded(ServiceError):
    """The job ran longer than its time limit."""

    code = "time-limit-exceeded"
    status = 500
    title = "The job took too long"


class WorkerLost(ServiceError):
    """The worker process died with this job, more often than is allowed."""

    code = "worker-lost"
    status = 500
    title = "The worker was lost"


class VerificationFailed(ServiceError):
    """A written file, read back and laid on the scan, differs from the masks it was written from."""

    code = "artifact-verification-failed"
    status = 500
    title = "A result file failed its verification"


class InternalError(ServiceError):
    """Anything unexpected: the traceback is in the operator's log, not in the answer."""

    code = "internal"
    status = 500
    title = "Unexpected failure"
