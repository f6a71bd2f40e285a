-- Made from sql/gold/product_changes.sql by `freshet gold check --write`.
CREATE OR REPLACE VIEW gold.product_changes AS
SELECT
  key,
  op,
  version,
  is_patch,
  changed_at,
  shard_id,
  position,
  sku,
  title,
  price,
  currency,
  ingest_date
FROM lake.product_changes
WITH NO SCHEMA BINDING;
