-- Made from sql/gold/revenue_changes.sql by `freshet gold check --write`.
-- Once, with the table's place for LOCATION; then, on the schedule, the merge.
CREATE TABLE IF NOT EXISTS revenue_changes (
    `day` date,
    `currency` string,
    `learned_at` timestamp,
    `learned_on` date,
    `sale_id` string,
    `sale_net_from` decimal(28,4),
    `sale_net_to` decimal(28,4),
    `net_change` decimal(28,4),
    `day_net_from` decimal(38,4),
    `day_net_to` decimal(38,4),
    `position` string
)
LOCATION '${location}'
TBLPROPERTIES ('table_type' = 'ICEBERG', 'format' = 'parquet');

MERGE INTO revenue_changes AS held
USING (
    WITH wanted AS (
        SELECT day, currency, CAST(learned_at AS timestamp(6)) AS learned_at, learned_on, sale_id, sale_net_from, sale_net_to, net_change, day_net_from, day_net_to, position FROM (
WITH replayed AS (
  SELECT
    shard_id,
    position,
    CAST(MIN(resolved_at) AS TIMESTAMP) AS replayed_at
  FROM quarantine_resolutions
  WHERE
    resolution = 'replayed' AND table_name = 'sales'
  GROUP BY
    shard_id,
    position
), told AS (
  SELECT
    sale_changes.*,
    COALESCE(replayed.replayed_at, sale_changes.arrived_at) AS learned_at
  FROM sale_changes
  LEFT JOIN replayed
    ON replayed.shard_id = sale_changes.shard_id
    AND replayed.position = sale_changes.position
), changes AS (
  SELECT
    key,
    op,
    version,
    position,
    is_patch,
    learned_at,
    sold_on,
    quantity,
    returned_quantity,
    unit_price,
    currency
  FROM told
  WHERE
    op <> 't'
  UNION ALL
  SELECT
    sales.key,
    'd',
    ends.version,
    ends.position,
    FALSE,
    ends.learned_at,
    NULL,
    NULL,
    NULL,
    NULL,
    NULL
  FROM (
    SELECT DISTINCT
      key
    FROM told
    WHERE
      op <> 't'
  ) AS sales
  CROSS JOIN (
    SELECT
      version,
      position,
      learned_at
    FROM told
    WHERE
      op = 't'
  ) AS ends
), ranked AS (
  SELECT
    changes.*,
    ROW_NUMBER() OVER (PARTITION BY key ORDER BY version, position) AS newness,
    COUNT(*) OVER (PARTITION BY key) AS times_told,
    MAX(CASE WHEN is_patch THEN 1 ELSE 0 END) OVER (PARTITION BY key) AS has_patches
  FROM changes
), once AS (
  SELECT
    sold_on AS day,
    currency,
    learned_at,
    position,
    key,
    (
      quantity - returned_quantity
    ) * unit_price AS net
  FROM ranked
  WHERE
    times_told = 1 AND op <> 'd' AND NOT is_patch
), whole AS (
  SELECT
    key,
    op,
    position,
    learned_at,
    newness,
    sold_on,
    currency,
    (
      quantity - returned_quantity
    ) * unit_price AS net,
    MAX(newness) OVER (
      PARTITION BY key
      ORDER BY learned_at, position
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS newest
  FROM ranked
  WHERE
    has_patches = 0 AND times_told > 1
), partial AS (
  SELECT
    key,
    position,
    learned_at,
    MAX(
      CASE
        WHEN NOT is_patch
        THEN CONCAT(CAST(newness_text AS VARCHAR), CAST(op AS VARCHAR))
      END
    ) OVER (
      PARTITION BY key
      ORDER BY learned_at, position
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS row_by,
    MAX(
      CASE
        WHEN NOT sold_on IS NULL
        THEN CONCAT(CAST(newness_text AS VARCHAR), CAST(sold_on AS VARCHAR))
      END
    ) OVER (
      PARTITION BY key
      ORDER BY learned_at, position
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS sold_on_by,
    MAX(
      CASE
        WHEN NOT currency IS NULL
        THEN CONCAT(CAST(newness_text AS VARCHAR), CAST(currency AS VARCHAR))
      END
    ) OVER (
      PARTITION BY key
      ORDER BY learned_at, position
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS currency_by,
    MAX(
      CASE
        WHEN NOT quantity IS NULL
        THEN CONCAT(CAST(newness_text AS VARCHAR), CAST(quantity AS VARCHAR))
      END
    ) OVER (
      PARTITION BY key
      ORDER BY learned_at, position
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS quantity_by,
    MAX(
      CASE
        WHEN NOT returned_quantity IS NULL
        THEN CONCAT(CAST(newness_text AS VARCHAR), CAST(returned_quantity AS VARCHAR))
      END
    ) OVER (
      PARTITION BY key
      ORDER BY learned_at, position
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS returned_by,
    MAX(
      CASE
        WHEN NOT unit_price IS NULL
        THEN CONCAT(CAST(newness_text AS VARCHAR), CAST(unit_price AS VARCHAR))
      END
    ) OVER (
      PARTITION BY key
      ORDER BY learned_at, position
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS price_by
  FROM (
    SELECT
      ranked.*,
      LPAD(CAST(newness AS VARCHAR), 12, '0') AS newness_text
    FROM ranked
    WHERE
      has_patches = 1
  ) AS texts
), states AS (
  SELECT
    key,
    position,
    learned_at,
    op <> 'd' AS is_there,
    sold_on,
    currency,
    net
  FROM whole
  WHERE
    newness = newest
  UNION ALL
  SELECT
    key,
    position,
    learned_at,
    NOT row_by IS NULL AND SUBSTR(row_by, 13) <> 'd',
    CAST(SUBSTR(sold_on_by, 13) AS DATE),
    SUBSTR(currency_by, 13),
    (
      CAST(SUBSTR(quantity_by, 13) AS INTEGER) - CAST(SUBSTR(returned_by, 13) AS INTEGER)
    ) * CAST(SUBSTR(price_by, 13) AS DECIMAL(18, 4))
  FROM partial
), cells AS (
  SELECT
    key,
    position,
    learned_at,
    CASE WHEN is_there THEN sold_on END AS day,
    CASE WHEN is_there THEN currency END AS currency,
    CASE WHEN is_there THEN net END AS net
  FROM states
), steps AS (
  SELECT
    key,
    position,
    learned_at,
    day,
    currency,
    net,
    LAG(day) OVER (PARTITION BY key ORDER BY learned_at, position) AS day_before,
    LAG(currency) OVER (PARTITION BY key ORDER BY learned_at, position) AS currency_before,
    LAG(net) OVER (PARTITION BY key ORDER BY learned_at, position) AS net_before
  FROM cells
), moves AS (
  SELECT
    day,
    currency,
    learned_at,
    position,
    key,
    0 AS net_from,
    net AS net_to
  FROM once
  WHERE
    net <> 0
  UNION ALL
  SELECT
    day,
    currency,
    learned_at,
    position,
    key,
    net_before AS net_from,
    net AS net_to
  FROM steps
  WHERE
    day = day_before AND currency = currency_before AND net <> net_before
  UNION ALL
  SELECT
    day,
    currency,
    learned_at,
    position,
    key,
    0,
    net
  FROM steps
  WHERE
    net <> 0
    AND (
      day_before IS NULL OR day <> day_before OR currency <> currency_before
    )
  UNION ALL
  SELECT
    day_before,
    currency_before,
    learned_at,
    position,
    key,
    net_before,
    0
  FROM steps
  WHERE
    net_before <> 0
    AND (
      day IS NULL OR day <> day_before OR currency <> currency_before
    )
), summed AS (
  SELECT
    moves.*,
    SUM(net_to - net_from) OVER (
      PARTITION BY day, currency
      ORDER BY learned_at, position, key
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS day_net_to
  FROM moves
)
SELECT
  day,
  currency,
  learned_at,
  CAST(learned_at AS DATE) AS learned_on,
  key AS sale_id,
  CAST(net_from AS DECIMAL(28, 4)) AS sale_net_from,
  CAST(net_to AS DECIMAL(28, 4)) AS sale_net_to,
  CAST(net_to - net_from AS DECIMAL(28, 4)) AS net_change,
  CAST(day_net_to - (
    net_to - net_from
  ) AS DECIMAL(38, 4)) AS day_net_from,
  CAST(day_net_to AS DECIMAL(38, 4)) AS day_net_to,
  position
FROM summed
        ) AS made WHERE TRUE
    ), kept AS (
        SELECT day, currency, learned_at, learned_on, sale_id, sale_net_from, sale_net_to, net_change, day_net_from, day_net_to, position FROM revenue_changes WHERE TRUE
    )
    SELECT changed.*, FALSE AS is_gone
    FROM (SELECT day, currency, learned_at, learned_on, sale_id, sale_net_from, sale_net_to, net_change, day_net_from, day_net_to, position FROM wanted EXCEPT SELECT day, currency, learned_at, learned_on, sale_id, sale_net_from, sale_net_to, net_change, day_net_from, day_net_to, position FROM kept) AS changed
    UNION ALL
    SELECT kept.day, kept.currency, kept.learned_at, kept.learned_on, kept.sale_id, kept.sale_net_from, kept.sale_net_to, kept.net_change, kept.day_net_from, kept.day_net_to, kept.position, TRUE AS is_gone
    FROM kept LEFT JOIN wanted ON wanted.sale_id = kept.sale_id AND wanted.position = kept.position AND wanted.day = kept.day AND wanted.currency = kept.currency
    WHERE wanted.sale_id IS NULL
) AS fresh
ON held.sale_id = fresh.sale_id AND held.position = fresh.position AND held.day = fresh.day AND held.currency = fresh.currency
WHEN MATCHED AND fresh.is_gone THEN DELETE
WHEN MATCHED THEN UPDATE SET learned_at = fresh.learned_at, learned_on = fresh.learned_on, sale_net_from = fresh.sale_net_from, sale_net_to = fresh.sale_net_to, net_change = fresh.net_change, day_net_from = fresh.day_net_from, day_net_to = fresh.day_net_to
WHEN NOT MATCHED THEN INSERT (day, currency, learned_at, learned_on, sale_id, sale_net_from, sale_net_to, net_change, day_net_from, day_net_to, position)
    VALUES (fresh.day, fresh.currency, fresh.learned_at, fresh.learned_on, fresh.sale_id, fresh.sale_net_from, fresh.sale_net_to, fresh.net_change, fresh.day_net_from, fresh.day_net_to, fresh.position);
