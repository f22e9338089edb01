"""The tables: jobs, attempts at them, and the webhooks owed for them. Times are seconds since 1970.

A job's row is also its record. `upgrade` brings a database of an earlier version up to these columns: all
that came later may be NULL, and so they are in rows from before.
"""

import sqlalchemy as sa

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("client_id", sa.String(200)),
    sa.Column("key_id", sa.String(80)),
    sa.Column("priority", sa.String(8), nullable=False),
    sa.Column("body_hash", sa.String(64), nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("model", sa.String(80), nullable=False),
    sa.Column("cost", sa.Double, nullable=False),  # megapixel-steps
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("deadline_at", sa.Double),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("token", sa.Integer, nullable=False),
    sa.Column("deaths", sa.Integer, nullable=False),
    sa.Column("images", sa.JSON, nullable=False),
    sa.Column("seconds", sa.JSON, nullable=False),
    sa.Column("peak_vram_bytes", sa.BigInteger),
    sa.Column("error", sa.JSON(none_as_null=True)),
    sa.Column("face", sa.String(12)),
    sa.Column("webhook_url", sa.String(2000)),
    sa.Column("worker", sa.String(300)),
    sa.Column("checkpoint_sha256", sa.String(64)),
    sa.Column("precision", sa.String(80)),
    sa.Column("abnormal", sa.String(200)),
    sa.Column("diagnosis", sa.Text),
    sa.Index("jobs_by_time", "created_at", "id"),
    sa.Index("jobs_by_key", "key_id", "client_id"),
    sa.Index("jobs_by_state", "state"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("token", sa.Integer, primary_key=True),
    sa.Column("worker", sa.String(80), nullable=False),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("ended_at", sa.Double),
    sa.Column("outcome", sa.String(40)),
)

# Whom the end of a job has to be told to; written with the end itself, so that neither is without the other.
webhooks = sa.Table(
    "webhooks",
    metadata,
    sa.Column("job_id", sa.String(40), primary_key=True),
    sa.Column("key_id", sa.String(80)),
    sa.Column("url", sa.String(2000), nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("next_at", sa.Double),  # NULL: no further try
    sa.Column("taken_at", sa.Double),
    sa.Column("failure", sa.Text),  # of the last try
    sa.Index("webhooks_by_time", "next_at"),
)


def upgrade(engine: sa.Engine) -> None:
    """Make what is missing: all tables in an empty database, columns in one of an earlier version."""
    metadata.create_all(engine)
    there = sa.inspect(engine)
    missing = {
        table.name: [
            column
            for column in table.columns
            if column.name not in {row["name"] for row in there.get_columns(table.name)}
        ]
        for table in metadata.sorted_tables
    }
    with engine.begin() as connection:
        for table, columns in missing.items():
            for column in columns:
                assert column.nullable, "rows from before have nothing to put there"
                kind = column.type.compile(engine.dialect)
                connection.execute(sa.text(f"ALTER TABLE {table} ADD COLUMN {column.name} {kind}"))
