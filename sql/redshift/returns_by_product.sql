-- Made from sql/gold/returns_by_product.sql by `freshet gold check --write`.
CREATE OR REPLACE VIEW gold.returns_by_product AS
WITH lines AS (
  SELECT
    sku,
    currency,
    description,
    sold_at,
    unit_price,
    CASE WHEN quantity > 0 THEN quantity ELSE 0 END AS units_sold,
    returned_quantity + CASE WHEN quantity < 0 AND unit_price > 0 THEN -quantity ELSE 0 END AS units_returned,
    ROW_NUMBER() OVER (
      PARTITION BY sku, currency
      ORDER BY sold_at DESC NULLS LAST, sale_id DESC NULLS LAST
    ) AS from_last
  FROM lake.sales
)
SELECT
  sku,
  currency,
  MAX(CASE WHEN from_last = 1 THEN description END) AS description,
  SUM(units_sold) AS units_sold,
  SUM(units_returned) AS units_returned,
  CAST(SUM(units_returned) AS DOUBLE PRECISION) / NULLIF(CAST(SUM(units_sold) AS DOUBLE PRECISION), 0) AS share_returned,
  CAST(SUM(units_returned * unit_price) AS DECIMAL(38, 4)) AS value_returned
FROM lines
GROUP BY
  sku,
  currency
HAVING
  SUM(units_returned) > 0
WITH NO SCHEMA BINDING;
