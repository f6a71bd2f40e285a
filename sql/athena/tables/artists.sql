-- Made from the contracts by `freshet docs build --sql`.
-- The consumer makes this table with its first commit: here to be read.
-- ${root} is the lake's root, s3://bucket/lake.
CREATE TABLE IF NOT EXISTS artists (
    `artist_id` string COMMENT 'The catalogue’s id of the artist',
    `name` string COMMENT 'Name of the artist',
    `url` string COMMENT 'Page for listeners',
    `image_url` string COMMENT 'Widest picture',
    `_version` bigint COMMENT 'Version of the change this row came from; greater is newer',
    `_position` string COMMENT 'Place of that change in the stream; decides between equal versions',
    `_patches` string COMMENT 'Columns newer than that change, as JSON with their versions; mostly null'
)
COMMENT 'One artist of a music catalogue.'
PARTITIONED BY (bucket(4, `artist_id`))
LOCATION '${root}/artists/'
TBLPROPERTIES (
    'table_type' = 'ICEBERG',
    'format' = 'parquet'
);
