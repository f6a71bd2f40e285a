-- Made from the contracts by `freshet docs build --sql`.
-- A deployed stack has this table already (template.yaml).
-- ${root} is the lake's root, s3://bucket/lake.
CREATE EXTERNAL TABLE IF NOT EXISTS change_log (
    `op` string COMMENT 'c create, u update, d delete, r read, t truncate',
    `key` string COMMENT 'Key text of the row',
    `version` bigint COMMENT 'The greatest wins',
    `event_id` string COMMENT 'Identity of the event',
    `source` string COMMENT 'Who sent it',
    `occurred_at` timestamp COMMENT 'The source’s time of the change',
    `accepted_at` timestamp COMMENT 'When the producer or poller took it',
    `before` string COMMENT 'The row before it as JSON where it was sent',
    `after` string COMMENT 'The row after it as JSON; null for a delete and a partial update',
    `patch` string COMMENT 'The changed columns of a partial update as JSON',
    `shard_id` string COMMENT 'Place in the stream',
    `sequence_number` string COMMENT 'Place in the stream',
    `record_index` int COMMENT 'Line in its record',
    `position` string COMMENT 'Place in the stream as sortable text',
    `arrived_at` timestamp COMMENT 'When Kinesis took its record',
    `contract_version` int COMMENT 'Version of the contract it was read with'
)
COMMENT 'Every decoded change event, append-only'
PARTITIONED BY (
    `table_name` string COMMENT 'Contract the event belongs to',
    `ingest_date` string COMMENT 'UTC day of arrival in the stream'
)
STORED AS PARQUET
LOCATION '${root}/change_log/'
TBLPROPERTIES (
    'classification' = 'parquet',
    'projection.enabled' = 'true',
    'projection.table_name.type' = 'enum',
    'projection.table_name.values' = 'sales,products,exchange_rates,categories,artists,albums,tracks,new_releases',
    'projection.ingest_date.type' = 'date',
    'projection.ingest_date.format' = 'yyyy-MM-dd',
    'projection.ingest_date.range' = '2026-01-01,NOW+1DAY',
    'storage.location.template' = '${root}/change_log/table_name=${table_name}/ingest_date=${ingest_date}/'
);
