-- Made from the contracts by `freshet docs build --sql`.
-- The consumer makes this table with its first commit: here to be read.
-- ${root} is the lake's root, s3://bucket/lake.
CREATE TABLE IF NOT EXISTS albums (
    `album_id` string COMMENT 'The catalogue’s id of the album',
    `title` string COMMENT 'Name of the album',
    `album_type` string COMMENT 'album, single or compilation',
    `artist_id` string COMMENT 'First artist’s id',
    `artists` string COMMENT 'All artists’ names',
    `release_date` date COMMENT 'Released on; first day of a month or year known no better',
    `release_date_precision` string COMMENT 'How much of release_date is known',
    `total_tracks` int COMMENT 'Tracks on it',
    `image_url` string COMMENT 'Widest cover',
    `url` string COMMENT 'Page for listeners',
    `_version` bigint COMMENT 'Version of the change this row came from; greater is newer',
    `_position` string COMMENT 'Place of that change in the stream; decides between equal versions',
    `_patches` string COMMENT 'Columns newer than that change, as JSON with their versions; mostly null'
)
COMMENT 'One album, single or compilation of a music catalogue.'
PARTITIONED BY (bucket(4, `album_id`))
LOCATION '${root}/albums/'
TBLPROPERTIES (
    'table_type' = 'ICEBERG',
    'format' = 'parquet'
);
