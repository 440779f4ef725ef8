"""The short form of `make chaos`, on every machine that has a Redis; with PostgreSQL where that is installed, too."""

from tests.support.chaos import Plan, run_chaos
from tests.support.servers import PostgresServer, RedisServer


def test_twenty_jobs_survive_a_kill_a_wiped_redis_and_a_restarted_database(
    redis: RedisServer, postgres: PostgresServer
) -> None:
    plan = Plan(
        jobs=20,
        clients=5,
        job_seconds=0.1,
        kills=1,
        redis_restarts=0,
        redis_wipes=1,
        postgres_away_seconds=1.0,
        disk_full_seconds=0.0,
    )
    tally = run_chaos(plan, redis, postgres)
    assert tally.problems == []
    assert tally.outcomes == {"succeeded": 20}
    assert set(tally.answers) <= {"202", "503"}
    assert len(tally.events) == 3
