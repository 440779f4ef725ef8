"""The environment, read once at start and handed on as one object. Every variable begins with `VISCERA_`."""

import json
from pathlib import Path
from typing import Any, Literal

from platformdirs import user_cache_path, user_data_path
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.exchange.peers import AeTitle, Peer, PeerName, origin_of
from service.request import SegmentationRequest

PREFIX = "VISCERA_"


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
    precision: str = Field(default="fp32", description="Precision of the backbone, one of those that the models offer.")
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of the inference engine; unset: all cores of the machine."
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
        default=3600.0, gt=0, description="An attempt that runs longer is killed and counts as a lost worker."
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

    # Server and logs
    host: str = Field(default="127.0.0.1", description="Address the API listens on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port the API listens on; 0 picks a free one.")
    log_json: bool = Field(default=False, description="Write logs as JSON lines rather than for a terminal.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log event that is written."
    )

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

    @property
    def embedded_broker(self) -> bool:
        """True when the queue is a folder of this machine and needs no server."""
        return self.broker_url.startswith("atomicfs:")

    @property
    def models_dir(self) -> Path:
        """Folder of the bundles that `viscera models pull` installs, and of the choice of the default."""
        return self.data_dir / "models"

    @property
    def broker_dir(self) -> Path:
        """Folder of the embedded queue."""
        return self.data_dir / "broker"

    def to_environment(self) -> dict[str, str]:
        """The variables that give a child process these very settings."""
        values = self.model_dump(mode="json", exclude_none=True)
        return {
            PREFIX + name.upper(): value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }
