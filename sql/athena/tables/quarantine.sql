-- Made from the contracts by `freshet docs build --sql`.
-- A deployed stack has this table already (template.yaml).
-- ${root} is the lake's root, s3://bucket/lake.
CREATE EXTERNAL TABLE IF NOT EXISTS quarantine (
    `reason` string COMMENT 'Why it was rejected (docs/architecture.md lists the reasons)',
    `field` string COMMENT 'Field that was wrong',
    `detail` string COMMENT 'What was wrong with it',
    `data` binary COMMENT 'The line’s original bytes',
    `decoder` string COMMENT 'Who read it: native, debezium, dms',
    `shard_id` string COMMENT 'Place in the stream',
    `sequence_number` string COMMENT 'Place in the stream',
    `record_index` int COMMENT 'Line in its record',
    `position` string COMMENT 'Place in the stream as sortable text',
    `arrived_at` timestamp COMMENT 'When Kinesis took its record',
    `contract_version` int COMMENT 'Version of the contract it was read with'
)
COMMENT 'Every rejected line with its reason and original bytes'
PARTITIONED BY (
    `table_name` string COMMENT 'Contract the line names; unknown where it names none',
    `ingest_date` string COMMENT 'UTC day of arrival in the stream'
)
STORED AS PARQUET
LOCATION '${root}/quarantine/'
TBLPROPERTIES (
    'classification' = 'parquet',
    'projection.enabled' = 'true',
    'projection.table_name.type' = 'enum',
    'projection.table_name.values' = 'sales,products,exchange_rates,categories,artists,albums,tracks,new_releases,unknown',
    'projection.ingest_date.type' = 'date',
    'projection.ingest_date.format' = 'yyyy-MM-dd',
    'projection.ingest_date.range' = '2026-01-01,NOW+1DAY',
    'storage.location.template' = '${root}/quarantine/table_name=${table_name}/ingest_date=${ingest_date}/'
);
