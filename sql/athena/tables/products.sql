-- Made from the contracts by `freshet docs build --sql`.
-- The consumer makes this table with its first commit: here to be read.
-- ${root} is the lake's root, s3://bucket/lake.
CREATE TABLE IF NOT EXISTS products (
    `product_id` string COMMENT 'The shop’s own id of the product',
    `sku` string COMMENT 'Stock code (the shop’s slug)',
    `title` string COMMENT 'Name shown to customers',
    `description` string COMMENT 'Text shown to customers',
    `price` decimal(18,4) COMMENT 'Current price of one unit',
    `currency` string COMMENT 'ISO 4217 code of the price',
    `category_id` string COMMENT 'Category id',
    `category` string COMMENT 'Category name',
    `image_url` string COMMENT 'First picture',
    `created_at` timestamp COMMENT 'Listed since',
    `updated_at` timestamp COMMENT 'The shop’s own time of last change',
    `_version` bigint COMMENT 'Version of the change this row came from; greater is newer',
    `_position` string COMMENT 'Place of that change in the stream; decides between equal versions',
    `_patches` string COMMENT 'Columns newer than that change, as JSON with their versions; mostly null'
)
COMMENT 'One product of a shop’s catalogue as the shop shows it now.'
PARTITIONED BY (bucket(4, `product_id`))
LOCATION '${root}/products/'
TBLPROPERTIES (
    'table_type' = 'ICEBERG',
    'format' = 'parquet'
);
