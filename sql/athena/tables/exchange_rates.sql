-- Made from the contracts by `freshet docs build --sql`.
-- The consumer makes this table with its first commit: here to be read.
-- ${root} is the lake's root, s3://bucket/lake.
CREATE TABLE IF NOT EXISTS exchange_rates (
    `currency` string COMMENT 'ISO 4217 code',
    `rate_date` date COMMENT 'Day the rate was published for',
    `rate` decimal(18,6) COMMENT 'Units of the currency for one EUR',
    `_version` bigint COMMENT 'Version of the change this row came from; greater is newer',
    `_position` string COMMENT 'Place of that change in the stream; decides between equal versions',
    `_patches` string COMMENT 'Columns newer than that change, as JSON with their versions; mostly null'
)
COMMENT 'The euro reference rate of one currency on one day: units of `currency` for one EUR.'
PARTITIONED BY (month(`rate_date`))
LOCATION '${root}/exchange_rates/'
TBLPROPERTIES (
    'table_type' = 'ICEBERG',
    'format' = 'parquet'
);
