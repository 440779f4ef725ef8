"""API keys: who may do what, for which tenant. Only a hash of each key is kept.

A key is `vsc_<id>_<secret>`. The secret has 256 random bits, so a plain SHA-256 of it cannot be searched.
"""

import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Engine,
    RowMapping,
    bindparam,
    case,
    cast,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from service.errors import KeyNotFound, RateLimited, Unauthenticated
from service.jobs.database import open_engine, transaction
from service.jobs.job import DEFAULT_TENANT, JobStatus
from service.jobs.schema import upgrade_schema
from service.jobs.table import API_KEYS, JOBS

PREFIX = "vsc"
FIRST_KEY_ID = "first"  # the same everywhere, so that of two processes that start at once only one makes it
_KEY = re.compile(rf"{PREFIX}_([0-9a-z]{{1,36}})_([\w-]{{43}})", re.ASCII)
_NOTE_USE_EVERY = timedelta(minutes=1)


_BY_ID = select(API_KEYS).where(API_KEYS.c.id == bindparam("key_id"))  # made once: every request asks this


class Scope(StrEnum):
    """What a key allows."""

    SUBMIT = "submit"  #: submit, cancel and delete jobs of the tenant
    READ = "read"  #: read jobs and results of the tenant
    ADMIN = "admin"  #: read the metrics of the service


ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True)
class ApiKey:
    """A key as the table knows it; the secret is not in it."""

    id: str
    tenant: str
    name: str
    scopes: frozenset[Scope]
    created_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None  #: to the minute
    rate_limit: int | None  #: requests per minute
    quota: int | None  #: unfinished jobs at a time


class KeyStore:
    """The keys, in the database of the job table. Safe for threads, not across a fork."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str) -> "KeyStore":
        """The keys of a database that nothing else of this process uses."""
        engine = open_engine(url)
        upgrade_schema(engine)
        return cls(engine)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def create(
        self,
        *,
        name: str,
        tenant: str = DEFAULT_TENANT,
        scopes: Collection[Scope] = ALL_SCOPES,
        rate_limit: int | None = None,
        quota: int | None = None,
        key_id: str | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key and its text, which is told this once and nowhere kept."""
        chosen_id = key_id or secrets.token_hex(6)
        secret = secrets.token_urlsafe(32)
        statement = (
            insert(API_KEYS)
            .values(
                id=chosen_id,
                tenant=tenant,
                name=name,
                hash=_hash(secret),
                scopes=sorted(scopes),
                created_at=datetime.now(UTC),
                rate_limit=rate_limit,
                quota=quota,
            )
            .returning(API_KEYS)
        )
        with transaction(self._engine) as connection:
            key = _key_of(connection.execute(statement).mappings().one())
        return key, f"{PREFIX}_{chosen_id}_{secret}"

    def create_first(self) -> str | None:
        """The text of the first key, with every scope; None when there has ever been a key."""
        with transaction(self._engine) as connection:
            if connection.execute(select(func.count()).select_from(API_KEYS)).scalar_one():
                return None
        try:
            return self.create(name="first key", key_id=FIRST_KEY_ID)[1]
        except IntegrityError:
            return None  # another process was quicker

    def authenticate(self, text: str) -> ApiKey:
        """The key whose text this is.

        Raises:
            Unauthenticated: no key is this one, or it was revoked.
        """
        parts = _KEY.fullmatch(text)
        if parts is None:
            raise Unauthenticated("The API key does not have the form of one; check that it was copied whole.")
        with transaction(self._engine) as connection:
            row = connection.execute(_BY_ID, {"key_id": parts[1]}).mappings().one_or_none()
        known = row["hash"] if row is not None else ""
        if not hmac.compare_digest(known, _hash(parts[2])) or row is None:
            raise Unauthenticated("The API key is not known here.")
        if row["revoked_at"] is not None:
            raise Unauthenticated("The API key was revoked.")
        key = _key_of(row)
        self._note_use(key)
        return key

    def list(self) -> list[ApiKey]:
        """Every key, also revoked ones, in the order they were made."""
        statement = select(API_KEYS).order_by(API_KEYS.c.created_at, API_KEYS.c.id)
        with transaction(self._engine) as connection:
            return [_key_of(row) for row in connection.execute(statement).mappings()]

    def revoke(self, key_id: str) -> None:
        """Refuse the key from now on; its jobs stay.

        Raises:
            KeyNotFound: no key has this id, or it was revoked before.
        """
        statement = (
            update(API_KEYS)
            .where(API_KEYS.c.id == key_id, API_KEYS.c.revoked_at.is_(None))
            .values(revoked_at=datetime.now(UTC))
        )
        with transaction(self._engine) as connection:
            if not connection.execute(statement).rowcount:
                raise KeyNotFound(f"There is no valid key {key_id[:80]!r}; `viscera keys list` shows them.")

    def count_request(self, key_id: str, limit: int) -> None:
        """Count one request of the minute at hand, for all processes that share the database.

        The database's clock says which minute it is, since those of several hosts differ. A request that is refused
        writes nothing.

        Raises:
            RateLimited: it is one too many for this minute.
        """
        minute = _minute_of_the_database(self._engine.dialect.name)
        in_it = case((API_KEYS.c.counted_minute == minute, API_KEYS.c.counted_requests), else_=0)
        statement = (
            update(API_KEYS)
            .where(API_KEYS.c.id == key_id, in_it < limit)
            .values(counted_minute=minute, counted_requests=in_it + 1)
        )
        with transaction(self._engine) as connection:
            if connection.execute(statement).rowcount:
                return
        left = max(1, math.ceil(60 - time.time() % 60))
        raise RateLimited(f"This key may make {limit} requests in a minute; go on in {left} seconds.", left)

    def unfinished_jobs(self, key_id: str) -> int:
        """How many jobs that came with the key wait or run."""
        statement = select(func.count()).where(
            JOBS.c.key_id == key_id, JOBS.c.status.in_([JobStatus.QUEUED, JobStatus.RUNNING])
        )
        with transaction(self._engine) as connection:
            return connection.execute(statement).scalar_one()

    def _note_use(self, key: ApiKey) -> None:
        now = datetime.now(UTC)
        if key.last_used_at is not None and key.last_used_at > now - _NOTE_USE_EVERY:
            return
        unnoted = or_(API_KEYS.c.last_used_at.is_(None), API_KEYS.c.last_used_at <= now - _NOTE_USE_EVERY)
        with transaction(self._engine) as connection:
            connection.execute(update(API_KEYS).where(API_KEYS.c.id == key.id, unnoted).values(last_used_at=now))


def _minute_of_the_database(dialect: str) -> ColumnElement[int]:
    """Minutes since 1970, as SQL."""
    seconds = func.strftime("%s", "now") if dialect == "sqlite" else func.floor(func.extract("epoch", func.now()))
    return cast(seconds, BigInteger) // 60


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key_of(row: RowMapping) -> ApiKey:
    return ApiKey(
        id=row["id"],
        tenant=row["tenant"],
        name=row["name"],
        scopes=frozenset(Scope(scope) for scope in row["scopes"]),
        created_at=row["created_at"],
        revoked_at=row["revoked_at"],
        last_used_at=row["last_used_at"],
        rate_limit=row["rate_limit"],
        quota=row["quota"],
    )
