-- Made from the contracts by `freshet docs build --sql`.
-- The consumer makes this table with its first commit: here to be read.
-- ${root} is the lake's root, s3://bucket/lake.
CREATE TABLE IF NOT EXISTS categories (
    `category_id` string COMMENT 'The shop’s own id',
    `name` string COMMENT 'Name shown to customers',
    `slug` string COMMENT 'Name in addresses',
    `image_url` string COMMENT 'Picture',
    `created_at` timestamp COMMENT 'Listed since',
    `updated_at` timestamp COMMENT 'The shop’s own time of last change',
    `_version` bigint COMMENT 'Version of the change this row came from; greater is newer',
    `_position` string COMMENT 'Place of that change in the stream; decides between equal versions',
    `_patches` string COMMENT 'Columns newer than that change, as JSON with their versions; mostly null'
)
COMMENT 'One category of a shop’s catalogue.'
PARTITIONED BY (bucket(2, `category_id`))
LOCATION '${root}/categories/'
TBLPROPERTIES (
    'table_type' = 'ICEBERG',
    'format' = 'parquet'
);
