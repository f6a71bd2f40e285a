-- Made from the contracts by `freshet docs build --sql`.
-- A deployed stack has this table already (template.yaml).
-- ${root} is the lake's root, s3://bucket/lake.
CREATE EXTERNAL TABLE IF NOT EXISTS quarantine_resolutions (
    `resolution` string COMMENT 'replayed, discarded or erased',
    `reason` string COMMENT 'Why',
    `resolved_at` timestamp COMMENT 'When',
    `resolved_by` string COMMENT 'By whom',
    `shard_id` string COMMENT 'Place of the line in the stream',
    `sequence_number` string COMMENT 'Place in the stream',
    `record_index` int COMMENT 'Line in its record',
    `position` string COMMENT 'Place in the stream as sortable text',
    `arrived_at` timestamp COMMENT 'When Kinesis took its record'
)
COMMENT 'What became of quarantined lines; a line whose shard and position are not here is open'
PARTITIONED BY (
    `table_name` string COMMENT 'Contract the line names; unknown where it names none',
    `ingest_date` string COMMENT 'UTC day the line arrived in the stream'
)
STORED AS PARQUET
LOCATION '${root}/quarantine_resolutions/'
TBLPROPERTIES (
    'classification' = 'parquet',
    'projection.enabled' = 'true',
    'projection.table_name.type' = 'enum',
    'projection.table_name.values' = 'sales,products,exchange_rates,categories,artists,albums,tracks,new_releases,unknown',
    'projection.ingest_date.type' = 'date',
    'projection.ingest_date.format' = 'yyyy-MM-dd',
    'projection.ingest_date.range' = '2026-01-01,NOW+1DAY',
    'storage.location.template' = '${root}/quarantine_resolutions/table_name=${table_name}/ingest_date=${ingest_date}/'
);
