-- Made from sql/gold/sale_changes.sql by `freshet gold check --write`.
CREATE OR REPLACE VIEW gold.sale_changes AS
SELECT
  key,
  op,
  version,
  is_patch,
  occurred_at,
  arrived_at,
  shard_id,
  position,
  sold_on,
  quantity,
  returned_quantity,
  unit_price,
  currency,
  ingest_date
FROM lake.sale_changes
WITH NO SCHEMA BINDING;
