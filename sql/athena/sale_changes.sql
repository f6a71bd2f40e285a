-- Made from sql/gold/sale_changes.sql by `freshet gold check --write`.
-- Once, with the table's place for LOCATION; then, on the schedule, the merge.
CREATE TABLE IF NOT EXISTS sale_changes (
    `key` string,
    `op` string,
    `version` bigint,
    `is_patch` boolean,
    `occurred_at` timestamp,
    `arrived_at` timestamp,
    `shard_id` string,
    `position` string,
    `sold_on` date,
    `quantity` int,
    `returned_quantity` int,
    `unit_price` decimal(18,4),
    `currency` string,
    `ingest_date` date
)
PARTITIONED BY (month(`ingest_date`))
LOCATION '${location}'
TBLPROPERTIES ('table_type' = 'ICEBERG', 'format' = 'parquet');

MERGE INTO sale_changes AS held
USING (
    WITH wanted AS (
        SELECT key, op, version, is_patch, CAST(occurred_at AS timestamp(6)) AS occurred_at, CAST(arrived_at AS timestamp(6)) AS arrived_at, shard_id, position, sold_on, quantity, returned_quantity, unit_price, currency, ingest_date FROM (
WITH copies AS (
  SELECT
    key,
    op,
    version,
    occurred_at,
    arrived_at,
    shard_id,
    position,
    ingest_date,
    NOT patch IS NULL AS is_patch,
    COALESCE(patch, after) AS told,
    ROW_NUMBER() OVER (PARTITION BY ingest_date, shard_id, position ORDER BY version) AS copy_number
  FROM change_log
  WHERE
    table_name = 'sales'
)
SELECT
  key,
  op,
  version,
  is_patch,
  CAST(occurred_at AS TIMESTAMP) AS occurred_at,
  CAST(arrived_at AS TIMESTAMP) AS arrived_at,
  shard_id,
  position,
  CAST(NULLIF(SUBSTR(JSON_EXTRACT_SCALAR(told, '$.sold_at'), 1, 10), '') AS DATE) AS sold_on,
  CAST(NULLIF(JSON_EXTRACT_SCALAR(told, '$.quantity'), '') AS INTEGER) AS quantity,
  CAST(NULLIF(JSON_EXTRACT_SCALAR(told, '$.returned_quantity'), '') AS INTEGER) AS returned_quantity,
  CAST(NULLIF(JSON_EXTRACT_SCALAR(told, '$.unit_price'), '') AS DECIMAL(18, 4)) AS unit_price,
  NULLIF(JSON_EXTRACT_SCALAR(told, '$.currency'), '') AS currency,
  CAST(ingest_date AS DATE) AS ingest_date
FROM copies
WHERE
  copy_number = 1
        ) AS made WHERE ingest_date >= current_date - INTERVAL '7' DAY
    ), kept AS (
        SELECT key, op, version, is_patch, occurred_at, arrived_at, shard_id, position, sold_on, quantity, returned_quantity, unit_price, currency, ingest_date FROM sale_changes WHERE ingest_date >= current_date - INTERVAL '7' DAY
    )
    SELECT changed.*, FALSE AS is_gone
    FROM (SELECT key, op, version, is_patch, occurred_at, arrived_at, shard_id, position, sold_on, quantity, returned_quantity, unit_price, currency, ingest_date FROM wanted EXCEPT SELECT key, op, version, is_patch, occurred_at, arrived_at, shard_id, position, sold_on, quantity, returned_quantity, unit_price, currency, ingest_date FROM kept) AS changed
    UNION ALL
    SELECT kept.key, kept.op, kept.version, kept.is_patch, kept.occurred_at, kept.arrived_at, kept.shard_id, kept.position, kept.sold_on, kept.quantity, kept.returned_quantity, kept.unit_price, kept.currency, kept.ingest_date, TRUE AS is_gone
    FROM kept LEFT JOIN wanted ON wanted.shard_id = kept.shard_id AND wanted.position = kept.position
    WHERE wanted.shard_id IS NULL
) AS fresh
ON held.shard_id = fresh.shard_id AND held.position = fresh.position
WHEN MATCHED AND fresh.is_gone THEN DELETE
WHEN MATCHED THEN UPDATE SET key = fresh.key, op = fresh.op, version = fresh.version, is_patch = fresh.is_patch, occurred_at = fresh.occurred_at, arrived_at = fresh.arrived_at, sold_on = fresh.sold_on, quantity = fresh.quantity, returned_quantity = fresh.returned_quantity, unit_price = fresh.unit_price, currency = fresh.currency, ingest_date = fresh.ingest_date
WHEN NOT MATCHED THEN INSERT (key, op, version, is_patch, occurred_at, arrived_at, shard_id, position, sold_on, quantity, returned_quantity, unit_price, currency, ingest_date)
    VALUES (fresh.key, fresh.op, fresh.version, fresh.is_patch, fresh.occurred_at, fresh.arrived_at, fresh.shard_id, fresh.position, fresh.sold_on, fresh.quantity, fresh.returned_quantity, fresh.unit_price, fresh.currency, fresh.ingest_date);
