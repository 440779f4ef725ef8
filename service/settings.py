"""The environment, read once at start and handed on as one object. Every variable begins with `VISCERA_`."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self

from platformdirs import user_cache_path, user_data_path
from pydantic import (
    Field,
    IPvAnyNetwork,
    SecretStr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.exchange.peers import AeTitle, Peer, origin_of
from service.exchange.plan import PeerName
from service.request import SegmentationRequest
from service.signatures import signing_key

PREFIX = "VISCERA_"
_WITH_SECRETS = object()  # the context in which secrets are written out


def _default_database_url(validated: dict[str, Any]) -> str:
    return f"sqlite:///{validated['data_dir'] / 'jobs.sqlite3'}"


class Settings(BaseSettings):
    """All configuration of API, worker and sweeper. No secret has a default."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    # Where things are
    data_dir: Path = Field(
        default_factory=lambda: user_data_path("viscera"),
        description="Folder for uploads, results, the SQLite job table and the embedded queue; on a local disk.",
    )
    database_url: str = Field(
        default_factory=_default_database_url,
        description="SQLAlchemy URL of the job table: SQLite in the data folder, or postgresql://...",
    )
    broker_url: str = Field(
        default="atomicfs://",
        description="Celery broker. atomicfs:// is the embedded queue in the data folder; or redis://...",
    )
    storage_url: str = Field(
        default="file://",
        pattern=r"^(file:|s3://[^/]+)",
        description="Where uploads and results are: file:// is the data folder; or s3://bucket/prefix, with the extra "
        "s3 and the usual variables of AWS clients (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL...).",
    )
    bundles_dir: list[Path] = Field(
        default_factory=list,
        description="Folders searched for model bundles, before the data folder's and the one shipped with the package "
        "(JSON list).",
    )

    # Models
    default_model: str | None = Field(
        default=None,
        description="Model used when a request names none, loaded at start; unset: the one that "
        "`viscera models default` chose, or viscera-compact.",
    )
    engine: Literal["auto", "cuda", "tensorrt", "openvino", "onnxruntime"] = Field(
        default="auto",
        description="Inference engine; auto takes a GPU where there is one, and OpenVINO where that is installed.",
    )
    engine_cache_dir: Path = Field(
        default_factory=lambda: user_cache_path("viscera") / "tensorrt",
        description="Folder for what TensorRT compiles, in minutes and for one kind of GPU.",
    )
    precision: str = Field(
        default="fp32",
        description="Precision of the backbone: one of those that the models offer, or `auto`: the fastest of them "
        "on the machine.",
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of the inference engine; unset: all cores of the machine."
    )

    jobs_at_once: int = Field(
        default=2,
        ge=1,
        le=16,
        description="Jobs that one worker works on at a time, each in a process of its own with the model open: while "
        "one has the network, the others read and write.",
    )

    # Uploads
    max_upload_bytes: int = Field(default=2 * 1024**3, ge=1, description="Largest upload accepted, in bytes.")
    max_upload_files: int = Field(default=5000, ge=1, description="Most files accepted in one upload.")
    max_expanded_bytes: int = Field(
        default=8 * 1024**3, ge=1, description="Largest total size of an upload once decompressed, in bytes."
    )
    max_expansion_ratio: float = Field(
        default=200.0, gt=1, description="Largest ratio of decompressed to compressed size of an archive."
    )

    # Jobs
    lease_seconds: float = Field(
        default=30.0, gt=0, description="A running job whose worker is silent for so long is given to another."
    )
    max_attempts: int = Field(
        default=3, ge=1, description="A job that lost its worker so many times fails with worker-lost."
    )
    sweep_seconds: float = Field(
        default=5.0, gt=0, description="Interval at which lost jobs and lost queue messages are looked for."
    )
    redispatch_seconds: float = Field(
        default=600.0,
        gt=0,
        description="A queued job is put on the queue again after so long, even while the queue has messages.",
    )
    job_time_limit_seconds: float = Field(
        default=3600.0,
        gt=0,
        description="A job that runs longer is stopped and fails with time-limit-exceeded; also the longest limit that "
        "a request may state for itself.",
    )
    result_retention_seconds: float = Field(
        default=30 * 86400.0,
        ge=0,
        description="A result is removed so long after its job has succeeded; 0 keeps results for ever.",
    )
    job_retention_seconds: float = Field(
        default=90 * 86400.0,
        ge=0,
        description="The row of a job that has ended and has no result is removed after so long; 0 keeps it for ever.",
    )
    orphan_seconds: float = Field(
        default=3600.0, ge=0, description="Files that belong to no job are removed when they are this old."
    )
    shutdown_grace_seconds: float = Field(
        default=20.0,
        ge=0,
        description="On shutdown a running job may go on for so long; then it is handed back to the queue.",
    )
    segmenter: str = Field(
        default="service.segmenter:open_segmenter",
        description="module:function that opens what the worker runs a job with; tests put a stand-in here.",
    )

    # Exchange with a PACS
    peers: dict[PeerName, Peer] = Field(
        default_factory=dict,
        description="DICOMweb services and DICOM nodes by name: where results may be sent, and credentials for "
        "references (JSON object).",
    )
    reference_hosts: list[str] = Field(
        default_factory=list,
        description="Hosts, as host or host:port, from which studies may be fetched by reference (JSON list).",
    )
    fetch_seconds: float = Field(default=600.0, gt=0, description="Longest time that fetching a study may take.")
    study_quiet_seconds: float = Field(
        default=10.0,
        gt=0,
        description="A study that comes by STOW-RS or C-STORE is complete when nothing more of it came for so long.",
    )
    received_choices: SegmentationRequest = Field(
        default_factory=SegmentationRequest,
        description="Choices (targets, mode, outputs, ...) for studies that come by STOW-RS or C-STORE (JSON object).",
    )
    received_push: list[PeerName] = Field(
        default_factory=list,
        description="Peers that get the results of studies that come by STOW-RS or C-STORE (JSON list).",
    )
    ae_title: AeTitle = Field(default="VISCERA", description="Our AE title, as SCP and as SCU.")
    scp_host: str = Field(default="127.0.0.1", description="Address that `viscera scp` listens on.")
    scp_port: int = Field(default=11112, ge=0, le=65535, description="Port that `viscera scp` listens on.")
    scp_callers: list[AeTitle] = Field(
        default_factory=list, description="AE titles that may send to `viscera scp` (JSON list)."
    )

    # Access
    auth: Literal["required", "none"] = Field(
        default="required",
        description="required: each request needs an API key or a token. none: whoever reaches the port may do "
        "everything; only for a network that you trust.",
    )
    metrics_public: bool = Field(default=False, description="Serve /metrics without a key; otherwise it needs `admin`.")
    cors_origins: list[str] = Field(
        default_factory=list,
        description="Origins of other web pages that may call the API, such as https://viewer.example (JSON list).",
    )
    oidc_issuer: str | None = Field(
        default=None, description="Issuer of the JWTs that are accepted beside API keys; unset: none are."
    )
    oidc_audience: str | None = Field(default=None, description="Audience that a JWT must name; needed with an issuer.")
    oidc_jwks: str | None = Field(
        default=None, description="URL or file of the issuer's key set (JWKS); needed with an issuer."
    )
    oidc_algorithms: list[str] = Field(
        default_factory=lambda: ["RS256", "ES256"],
        description="Signature algorithms that are accepted; never a symmetric one (JSON list).",
    )
    oidc_tenant_claim: str = Field(
        default="sub", description="Claim whose value, after `oidc:`, is the tenant that the caller's jobs belong to."
    )
    oidc_scope_claim: str = Field(
        default="scope",
        description="Claim with the scopes viscera:submit, viscera:read, viscera:admin: a list, or words in a string.",
    )

    # Webhooks
    webhook_secret: SecretStr | None = Field(
        default=None, description="Secret that signs webhooks, whsec_ and base64; unset: callback_url is refused."
    )
    webhook_tenant_secrets: dict[str, SecretStr] = Field(
        default_factory=dict, description="Secrets of single tenants, used instead (JSON object)."
    )
    webhook_allowed_networks: list[IPvAnyNetwork] = Field(
        default_factory=list,
        description="Networks that webhooks may reach although they are private, such as 10.1.0.0/16 (JSON list).",
    )
    webhook_timeout_seconds: float = Field(
        default=15.0, gt=0, description="Time that one attempt of a webhook may take."
    )

    # Server and logs
    host: str = Field(default="127.0.0.1", description="Address the API listens on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port the API listens on; 0 picks a free one.")
    max_json_bytes: int = Field(
        default=1024**2, ge=1, description="Largest body of a request that is no upload, in bytes."
    )
    request_idle_seconds: float = Field(
        default=60.0, gt=0, description="A request whose body stops arriving for so long is refused."
    )
    request_bytes_per_second: int = Field(
        default=1000, ge=0, description="A request whose body arrives more slowly than this on average is refused."
    )
    worker_metrics_port: int | None = Field(
        default=None, ge=1, le=65535, description="Port of the worker's own /metrics; unset: it has none."
    )
    worker_metrics_host: str = Field(default="127.0.0.1", description="Address of the worker's own /metrics.")
    log_json: bool = Field(default=False, description="Write logs as JSON lines rather than for a terminal.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log event that is written."
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^/]+",
        description="Base address of an OpenTelemetry collector that gets traces by OTLP over HTTP, such as "
        "http://collector:4318; needs the extra tracing. Unset: nothing is traced.",
    )

    @field_serializer("webhook_secret", "webhook_tenant_secrets", mode="wrap", when_used="json")
    def _secrets(self, value: Any, mask: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:  # noqa: ANN401 - JSON
        """Masked, unless a child process is to get them."""
        if info.context is not _WITH_SECRETS:
            return mask(value)
        if isinstance(value, dict):
            return {tenant: secret.get_secret_value() for tenant, secret in value.items()}
        return None if value is None else value.get_secret_value()

    @field_serializer("peers", mode="wrap", when_used="json")
    def _peers(self, value: dict[str, Peer], mask: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:  # noqa: ANN401 - JSON
        if info.context is not _WITH_SECRETS:
            return mask(value)
        return {name: peer.to_json() for name, peer in value.items()}

    @field_validator("webhook_secret", "webhook_tenant_secrets", mode="after")
    @classmethod
    def _sound_secrets(cls, value: SecretStr | dict[str, SecretStr] | None) -> SecretStr | dict[str, SecretStr] | None:
        for secret in value.values() if isinstance(value, dict) else (value,):
            if secret is not None:
                signing_key(secret.get_secret_value())
        return value

    @field_validator("data_dir", mode="after")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    @field_validator("reference_hosts", mode="after")
    @classmethod
    def _host_and_port(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            origin_of(f"https://{host}")
            if "/" in host:
                raise ValueError("A host is given as host or host:port, without scheme and path.")
        return hosts

    @model_validator(mode="after")
    def _whole_oidc(self) -> Self:
        if self.oidc_issuer and not (self.oidc_audience and self.oidc_jwks):
            raise ValueError("oidc_issuer needs oidc_audience and oidc_jwks beside it.")
        if weak := [name for name in self.oidc_algorithms if not name.startswith(("RS", "PS", "ES", "EdDSA"))]:
            raise ValueError(f"oidc_algorithms has {', '.join(weak)}; only asymmetric signatures can be trusted.")
        return self

    def webhook_secret_of(self, tenant: str) -> str | None:
        """The secret that signs the webhooks of a tenant; None when it gets none."""
        secret = self.webhook_tenant_secrets.get(tenant, self.webhook_secret)
        return None if secret is None else secret.get_secret_value()

    @property
    def local_key_file(self) -> Path:
        """Where the first API key is kept for the commands of the same user on the same machine."""
        return self.data_dir / "local-key"

    @property
    def embedded_broker(self) -> bool:
        """True when the queue is a folder of this machine and needs no server."""
        return self.broker_url.startswith("atomicfs:")

    @property
    def keep_results_for(self) -> timedelta | None:
        """How long a result is kept; None: for ever."""
        return timedelta(seconds=self.result_retention_seconds) if self.result_retention_seconds else None

    @property
    def keep_jobs_for(self) -> timedelta | None:
        """How long the row of an ended job without a result is kept; None: for ever."""
        return timedelta(seconds=self.job_retention_seconds) if self.job_retention_seconds else None

    @property
    def models_dir(self) -> Path:
        """Folder of the bundles that `viscera models pull` installs, and of the choice of the default."""
        return self.data_dir / "models"

    @property
    def broker_dir(self) -> Path:
        """Folder of the embedded queue."""
        return self.data_dir / "broker"

    def to_environment(self) -> dict[str, str]:
        """The variables that give a child process these very settings, secrets included."""
        values = self.model_dump(mode="json", exclude_none=True, context=_WITH_SECRETS)
        return {
            PREFIX + name.upper(): value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }
