-- Made from the contracts by `freshet docs build --sql`.
-- A deployed stack has this table already (template.yaml).
-- ${root} is the lake's root, s3://bucket/lake.
CREATE EXTERNAL TABLE IF NOT EXISTS receipts (
    `batch` string COMMENT 'Name of the batch: shard and sequence range',
    `kind` string COMMENT 'stream, or what else fed it: replay, failure, rebuild, erase …',
    `shard_id` string COMMENT 'Shard of the batch',
    `first_sequence_number` string COMMENT 'Where it begins',
    `last_sequence_number` string COMMENT 'Where it ends',
    `records` bigint COMMENT 'Records of the batch, on the line without a table',
    `table_name` string COMMENT 'Table; null for rejected and ignored records',
    `contract_version` int COMMENT 'Version of the contract',
    `received` bigint COMMENT 'Changes received: the sum of the outcomes that follow',
    `inserted` bigint COMMENT 'Rows that came',
    `updated` bigint COMMENT 'Rows that changed',
    `deleted` bigint COMMENT 'Rows that went',
    `unchanged` bigint COMMENT 'Changes that say what the row said',
    `duplicate` bigint COMMENT 'Changes that were there',
    `stale` bigint COMMENT 'Changes older than the row',
    `rejected` bigint COMMENT 'Lines in quarantine',
    `waiting` bigint COMMENT 'Partial updates of rows that are not there',
    `ignored` bigint COMMENT 'Records that are no change, as heartbeats',
    `retracted` bigint COMMENT 'Rows removed beside the equation: under an earlier delete or a truncate',
    `snapshot_id` bigint COMMENT 'Snapshot that shows it',
    `started_at` timestamp COMMENT 'When the consumer began',
    `committed_at` timestamp COMMENT 'When it was done',
    `duration_ms` bigint COMMENT 'Milliseconds between',
    `bytes_read` bigint COMMENT 'From the object store',
    `bytes_written` bigint COMMENT 'To the object store',
    `requests` bigint COMMENT 'Calls to the object store',
    `event_lag_ms_p50` bigint COMMENT 'From the source’s time of the change to the commit, p50 in milliseconds',
    `event_lag_ms_p95` bigint COMMENT 'From the source’s time of the change to the commit, p95 in milliseconds',
    `event_lag_ms_p99` bigint COMMENT 'From the source’s time of the change to the commit, p99 in milliseconds',
    `accept_lag_ms_p50` bigint COMMENT 'From acceptance to the commit, p50 in milliseconds',
    `accept_lag_ms_p95` bigint COMMENT 'From acceptance to the commit, p95 in milliseconds',
    `accept_lag_ms_p99` bigint COMMENT 'From acceptance to the commit, p99 in milliseconds',
    `note` string COMMENT 'Anything else, for people'
)
COMMENT 'What became of each batch, a line for each table and one for what belongs to none'
PARTITIONED BY (
    `ingest_date` string COMMENT 'UTC day of the commit'
)
STORED AS PARQUET
LOCATION '${root}/receipts/'
TBLPROPERTIES (
    'classification' = 'parquet',
    'projection.enabled' = 'true',
    'projection.ingest_date.type' = 'date',
    'projection.ingest_date.format' = 'yyyy-MM-dd',
    'projection.ingest_date.range' = '2026-01-01,NOW+1DAY',
    'storage.location.template' = '${root}/receipts/ingest_date=${ingest_date}/'
);
