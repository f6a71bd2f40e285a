-- Made from the contracts by `freshet docs build --sql`.
-- The consumer makes this table with its first commit: here to be read.
-- ${root} is the lake's root, s3://bucket/lake.
CREATE TABLE IF NOT EXISTS sales (
    `sale_id` string COMMENT 'Invoice number and line, unique',
    `invoice_no` string COMMENT 'Invoice the line belongs to',
    `line` int COMMENT 'Position of the line in its invoice, from 1',
    `sku` string COMMENT 'Stock code of the product sold',
    `description` string COMMENT 'Product text on the line',
    `quantity` int COMMENT 'Units sold; negative for a return that names no sale',
    `returned_quantity` int COMMENT 'Units returned since',
    `unit_price` decimal(18,4) COMMENT 'Price of one unit',
    `currency` string COMMENT 'ISO 4217 code of the price',
    `customer_id` string COMMENT 'Customer, if known; hashed with the deployment’s key',
    `country` string COMMENT 'Customer’s country',
    `sold_at` timestamp COMMENT 'When the line was sold',
    `_version` bigint COMMENT 'Version of the change this row came from; greater is newer',
    `_position` string COMMENT 'Place of that change in the stream; decides between equal versions',
    `_patches` string COMMENT 'Columns newer than that change, as JSON with their versions; mostly null'
)
COMMENT 'One line of an invoice in its current state: a return raises `returned_quantity` of the sale.'
PARTITIONED BY (day(`sold_at`))
LOCATION '${root}/sales/'
TBLPROPERTIES (
    'table_type' = 'ICEBERG',
    'format' = 'parquet'
);
