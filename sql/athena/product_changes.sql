-- Made from sql/gold/product_changes.sql by `freshet gold check --write`.
-- Once, with the table's place for LOCATION; then, on the schedule, the merge.
CREATE TABLE IF NOT EXISTS product_changes (
    `key` string,
    `op` string,
    `version` bigint,
    `is_patch` boolean,
    `changed_at` timestamp,
    `shard_id` string,
    `position` string,
    `sku` string,
    `title` string,
    `price` decimal(18,4),
    `currency` string,
    `ingest_date` date
)
PARTITIONED BY (month(`ingest_date`))
LOCATION '${location}'
TBLPROPERTIES ('table_type' = 'ICEBERG', 'format' = 'parquet');

MERGE INTO product_changes AS held
USING (
    WITH wanted AS (
        SELECT key, op, version, is_patch, CAST(changed_at AS timestamp(6)) AS changed_at, shard_id, position, sku, title, price, currency, ingest_date FROM (
WITH copies AS (
  SELECT
    key,
    op,
    version,
    occurred_at,
    accepted_at,
    shard_id,
    position,
    ingest_date,
    NOT patch IS NULL AS is_patch,
    COALESCE(patch, after) AS told,
    ROW_NUMBER() OVER (PARTITION BY ingest_date, shard_id, position ORDER BY version) AS copy_number
  FROM change_log
  WHERE
    table_name = 'products'
)
SELECT
  key,
  op,
  version,
  is_patch,
  CAST(COALESCE(occurred_at, accepted_at) AS TIMESTAMP) AS changed_at,
  shard_id,
  position,
  NULLIF(JSON_EXTRACT_SCALAR(told, '$.sku'), '') AS sku,
  NULLIF(JSON_EXTRACT_SCALAR(told, '$.title'), '') AS title,
  CAST(NULLIF(JSON_EXTRACT_SCALAR(told, '$.price'), '') AS DECIMAL(18, 4)) AS price,
  NULLIF(JSON_EXTRACT_SCALAR(told, '$.currency'), '') AS currency,
  CAST(ingest_date AS DATE) AS ingest_date
FROM copies
WHERE
  copy_number = 1
        ) AS made WHERE ingest_date >= current_date - INTERVAL '7' DAY
    ), kept AS (
        SELECT key, op, version, is_patch, changed_at, shard_id, position, sku, title, price, currency, ingest_date FROM product_changes WHERE ingest_date >= current_date - INTERVAL '7' DAY
    )
    SELECT changed.*, FALSE AS is_gone
    FROM (SELECT key, op, version, is_patch, changed_at, shard_id, position, sku, title, price, currency, ingest_date FROM wanted EXCEPT SELECT key, op, version, is_patch, changed_at, shard_id, position, sku, title, price, currency, ingest_date FROM kept) AS changed
    UNION ALL
    SELECT kept.key, kept.op, kept.version, kept.is_patch, kept.changed_at, kept.shard_id, kept.position, kept.sku, kept.title, kept.price, kept.currency, kept.ingest_date, TRUE AS is_gone
    FROM kept LEFT JOIN wanted ON wanted.shard_id = kept.shard_id AND wanted.position = kept.position
    WHERE wanted.shard_id IS NULL
) AS fresh
ON held.shard_id = fresh.shard_id AND held.position = fresh.position
WHEN MATCHED AND fresh.is_gone THEN DELETE
WHEN MATCHED THEN UPDATE SET key = fresh.key, op = fresh.op, version = fresh.version, is_patch = fresh.is_patch, changed_at = fresh.changed_at, sku = fresh.sku, title = fresh.title, price = fresh.price, currency = fresh.currency, ingest_date = fresh.ingest_date
WHEN NOT MATCHED THEN INSERT (key, op, version, is_patch, changed_at, shard_id, position, sku, title, price, currency, ingest_date)
    VALUES (fresh.key, fresh.op, fresh.version, fresh.is_patch, fresh.changed_at, fresh.shard_id, fresh.position, fresh.sku, fresh.title, fresh.price, fresh.currency, fresh.ingest_date);
