-- Made from the contracts by `freshet docs build --sql`.
-- The consumer makes this table with its first commit: here to be read.
-- ${root} is the lake's root, s3://bucket/lake.
CREATE TABLE IF NOT EXISTS tracks (
    `track_id` string COMMENT 'The catalogue’s id of the track',
    `title` string COMMENT 'Name of the track',
    `album_id` string COMMENT 'Album it is on',
    `artist_id` string COMMENT 'First artist’s id',
    `artists` string COMMENT 'All artists’ names',
    `disc_number` int COMMENT 'Disc, from 1',
    `track_number` int COMMENT 'Position on its disc, from 1',
    `duration_ms` int COMMENT 'Length in milliseconds',
    `explicit` boolean COMMENT 'Has explicit lyrics',
    `url` string COMMENT 'Page for listeners',
    `_version` bigint COMMENT 'Version of the change this row came from; greater is newer',
    `_position` string COMMENT 'Place of that change in the stream; decides between equal versions',
    `_patches` string COMMENT 'Columns newer than that change, as JSON with their versions; mostly null'
)
COMMENT 'One track of a music catalogue.'
PARTITIONED BY (bucket(4, `track_id`))
LOCATION '${root}/tracks/'
TBLPROPERTIES (
    'table_type' = 'ICEBERG',
    'format' = 'parquet'
);
