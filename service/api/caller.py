"""Who makes a request: a tenant, with what it may do."""

from dataclasses import dataclass

from service.jobs.job import DEFAULT_TENANT
from service.jobs.keys import ALL_SCOPES, ApiKey, Scope


@dataclass(frozen=True)
class Caller:
    """One caller, whichever way it was recognized. Jobs belong to its tenant."""

    tenant: str
    key_id: str | None  #: the API key, when it was one
    scopes: frozenset[Scope]
    rate_limit: int | None = None  #: requests per minute
    quota: int | None = None  #: unfinished jobs at a time

    @classmethod
    def of_key(cls, key: ApiKey) -> "Caller":
        """Whoever holds an API key."""
        return cls(key.tenant, key.id, key.scopes, key.rate_limit, key.quota)


#: Everyone, where the settings ask for no authentication.
ANYONE = Caller(DEFAULT_TENANT, None, ALL_SCOPES)
