-- Made from the contracts by `freshet docs build --sql`.
-- The consumer makes this table with its first commit: here to be read.
-- ${root} is the lake's root, s3://bucket/lake.
CREATE TABLE IF NOT EXISTS new_releases (
    `artist_id` string COMMENT 'The artist that is followed',
    `album_id` string COMMENT 'The album in the artist’s list',
    `title` string COMMENT 'Name of the album',
    `album_type` string COMMENT 'album, single or compilation',
    `release_date` date COMMENT 'Released on; first day of a month or year known no better',
    `release_date_precision` string COMMENT 'How much of release_date is known',
    `total_tracks` int COMMENT 'Tracks on it',
    `url` string COMMENT 'Page for listeners',
    `_version` bigint COMMENT 'Version of the change this row came from; greater is newer',
    `_position` string COMMENT 'Place of that change in the stream; decides between equal versions',
    `_patches` string COMMENT 'Columns newer than that change, as JSON with their versions; mostly null'
)
COMMENT 'One album in the list of an artist that is followed: a row that appears is a release.'
PARTITIONED BY (bucket(4, `artist_id`))
LOCATION '${root}/new_releases/'
TBLPROPERTIES (
    'table_type' = 'ICEBERG',
    'format' = 'parquet'
);
