-- Made from sql/gold/product_price_history.sql by `freshet gold check --write`.
CREATE OR REPLACE VIEW gold.product_price_history AS
WITH changes AS (
  SELECT
    key,
    op,
    version,
    position,
    is_patch,
    changed_at,
    price,
    currency
  FROM gold.product_changes
  WHERE
    op <> 't'
  UNION ALL
  SELECT
    products.key,
    'd',
    ends.version,
    ends.position,
    FALSE,
    ends.changed_at,
    NULL,
    NULL
  FROM (
    SELECT DISTINCT
      key
    FROM gold.product_changes
    WHERE
      op <> 't'
  ) AS products
  CROSS JOIN (
    SELECT
      version,
      position,
      changed_at
    FROM gold.product_changes
    WHERE
      op = 't'
  ) AS ends
), ranked AS (
  SELECT
    key,
    op,
    is_patch,
    changed_at,
    price,
    currency,
    LPAD(
      CAST(ROW_NUMBER() OVER (PARTITION BY key ORDER BY version, position) AS VARCHAR(64)),
      12,
      '0'
    ) AS newness
  FROM changes
), known AS (
  SELECT
    key,
    changed_at,
    newness,
    MAX(CASE WHEN NOT is_patch THEN newness || op END) OVER (
      PARTITION BY key
      ORDER BY changed_at, newness
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS row_by,
    MAX(CASE WHEN NOT price IS NULL THEN newness || CAST(price AS VARCHAR(64)) END) OVER (
      PARTITION BY key
      ORDER BY changed_at, newness
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS price_by,
    MAX(CASE WHEN NOT currency IS NULL THEN newness || currency END) OVER (
      PARTITION BY key
      ORDER BY changed_at, newness
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS currency_by,
    ROW_NUMBER() OVER (PARTITION BY key, changed_at ORDER BY newness DESC NULLS LAST) AS from_last
  FROM ranked
), states AS (
  SELECT
    key,
    changed_at,
    CASE
      WHEN row_by IS NULL OR SUBSTRING(row_by, 13) = 'd'
      THEN ''
      ELSE SUBSTRING(currency_by, 13) || ' ' || SUBSTRING(price_by, 13)
    END AS state
  FROM known
  WHERE
    from_last = 1
), followed AS (
  SELECT
    key,
    changed_at,
    state,
    LAG(state) OVER (PARTITION BY key ORDER BY changed_at) AS state_before
  FROM states
), bounds AS (
  SELECT
    key,
    changed_at,
    state,
    LEAD(changed_at) OVER (PARTITION BY key ORDER BY changed_at) AS changed_next
  FROM followed
  WHERE
    state <> COALESCE(state_before, '')
), named AS (
  SELECT
    key,
    sku,
    title,
    ROW_NUMBER() OVER (PARTITION BY key ORDER BY version DESC NULLS LAST, position DESC NULLS LAST) AS from_last
  FROM gold.product_changes
  WHERE
    op <> 'd' AND op <> 't' AND NOT is_patch
)
SELECT
  bounds.key AS product_id,
  named.sku,
  named.title,
  CAST(SUBSTRING(bounds.state, 5) AS DECIMAL(18, 4)) AS price,
  SUBSTRING(bounds.state, 1, 3) AS currency,
  bounds.changed_at AS valid_from,
  bounds.changed_next AS valid_to,
  bounds.changed_next IS NULL AS is_current
FROM bounds
JOIN named
  ON named.key = bounds.key AND named.from_last = 1
WHERE
  bounds.state <> ''
WITH NO SCHEMA BINDING;
