-- Every change of a day's net revenue when we learned it, and the sale through which: what each sale and the whole day stood at
-- before and after. A late change of an older version changes nothing; a sale that moves to another day changes both.
-- We learn a change when it arrives in the stream, or when it was replayed from the quarantine.
--
-- materialise: daily, key: sale_id, position, day, currency
WITH replayed AS (
    SELECT shard_id, position, CAST(min(resolved_at) AS timestamp) AS replayed_at
    FROM quarantine_resolutions
    WHERE resolution = 'replayed' AND table_name = 'sales'
    GROUP BY shard_id, position
),
told AS (
    SELECT sale_changes.*, coalesce(replayed.replayed_at, sale_changes.arrived_at) AS learned_at
    FROM sale_changes
    LEFT JOIN replayed ON replayed.shard_id = sale_changes.shard_id AND replayed.position = sale_changes.position
),
changes AS (
    SELECT key, op, version, position, is_patch, learned_at, sold_on, quantity, returned_quantity, unit_price, currency
    FROM told
    WHERE op <> 't'
    UNION ALL
    -- The end of all rows is the end of each.
    SELECT sales.key, 'd', ends.version, ends.position, FALSE, ends.learned_at, NULL, NULL, NULL, NULL, NULL
    FROM (SELECT DISTINCT key FROM told WHERE op <> 't') AS sales
    CROSS JOIN (SELECT version, position, learned_at FROM told WHERE op = 't') AS ends
),
ranked AS (
    SELECT changes.*,
           row_number() OVER (PARTITION BY key ORDER BY version, position) AS newness,
           count(*) OVER (PARTITION BY key) AS times_told,
           max(CASE WHEN is_patch THEN 1 ELSE 0 END) OVER (PARTITION BY key) AS has_patches
    FROM changes
),
-- Most sales are told of once, and need no more than that.
once AS (
    SELECT sold_on AS day, currency, learned_at, position, key, (quantity - returned_quantity) * unit_price AS net
    FROM ranked
    WHERE times_told = 1 AND op <> 'd' AND NOT is_patch
),
-- Of whole rows the newest so far says everything.
whole AS (
    SELECT key, op, position, learned_at, newness, sold_on, currency, (quantity - returned_quantity) * unit_price AS net,
           max(newness) OVER (
               PARTITION BY key ORDER BY learned_at, position ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
           ) AS newest
    FROM ranked
    WHERE has_patches = 0 AND times_told > 1
),
-- Of partial updates the newest so far of each column; what it says follows its rank.
partial AS (
    SELECT key, position, learned_at,
           max(CASE WHEN NOT is_patch THEN newness_text || op END) OVER (
               PARTITION BY key ORDER BY learned_at, position ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
           ) AS row_by,
           max(CASE WHEN sold_on IS NOT NULL THEN newness_text || CAST(sold_on AS varchar) END) OVER (
               PARTITION BY key ORDER BY learned_at, position ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
           ) AS sold_on_by,
           max(CASE WHEN currency IS NOT NULL THEN newness_text || currency END) OVER (
               PARTITION BY key ORDER BY learned_at, position ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
           ) AS currency_by,
           max(CASE WHEN quantity IS NOT NULL THEN newness_text || CAST(quantity AS varchar) END) OVER (
               PARTITION BY key ORDER BY learned_at, position ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
           ) AS quantity_by,
           max(CASE WHEN returned_quantity IS NOT NULL THEN newness_text || CAST(returned_quantity AS varchar) END) OVER (
               PARTITION BY key ORDER BY learned_at, position ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
           ) AS returned_by,
           max(CASE WHEN unit_price IS NOT NULL THEN newness_text || CAST(unit_price AS varchar) END) OVER (
               PARTITION BY key ORDER BY learned_at, position ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
           ) AS price_by
    FROM (SELECT ranked.*, lpad(CAST(newness AS varchar), 12, '0') AS newness_text FROM ranked WHERE has_patches = 1) AS texts
),
states AS (
    SELECT key, position, learned_at, op <> 'd' AS is_there, sold_on, currency, net
    FROM whole
    WHERE newness = newest
    UNION ALL
    SELECT key, position, learned_at, row_by IS NOT NULL AND substr(row_by, 13) <> 'd',
           CAST(substr(sold_on_by, 13) AS date),
           substr(currency_by, 13),
           (CAST(substr(quantity_by, 13) AS integer) - CAST(substr(returned_by, 13) AS integer)) * CAST(substr(price_by, 13) AS decimal(18, 4))
    FROM partial
),
cells AS (
    SELECT key, position, learned_at,
           CASE WHEN is_there THEN sold_on END AS day,
           CASE WHEN is_there THEN currency END AS currency,
           CASE WHEN is_there THEN net END AS net
    FROM states
),
steps AS (
    SELECT key, position, learned_at, day, currency, net,
           lag(day) OVER (PARTITION BY key ORDER BY learned_at, position) AS day_before,
           lag(currency) OVER (PARTITION BY key ORDER BY learned_at, position) AS currency_before,
           lag(net) OVER (PARTITION BY key ORDER BY learned_at, position) AS net_before
    FROM cells
),
moves AS (
    SELECT day, currency, learned_at, position, key, 0 AS net_from, net AS net_to
    FROM once
    WHERE net <> 0
    UNION ALL
    SELECT day, currency, learned_at, position, key, net_before AS net_from, net AS net_to
    FROM steps
    WHERE day = day_before AND currency = currency_before AND net <> net_before
    UNION ALL
    SELECT day, currency, learned_at, position, key, 0, net
    FROM steps
    WHERE net <> 0 AND (day_before IS NULL OR day <> day_before OR currency <> currency_before)
    UNION ALL
    SELECT day_before, currency_before, learned_at, position, key, net_before, 0
    FROM steps
    WHERE net_before <> 0 AND (day IS NULL OR day <> day_before OR currency <> currency_before)
),
summed AS (
    SELECT moves.*,
           sum(net_to - net_from) OVER (
               PARTITION BY day, currency ORDER BY learned_at, position, key ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
           ) AS day_net_to
    FROM moves
)
SELECT day,
       currency,
       learned_at,
       CAST(learned_at AS date) AS learned_on,
       key AS sale_id,
       CAST(net_from AS decimal(28, 4)) AS sale_net_from,
       CAST(net_to AS decimal(28, 4)) AS sale_net_to,
       CAST(net_to - net_from AS decimal(28, 4)) AS net_change,
       CAST(day_net_to - (net_to - net_from) AS decimal(38, 4)) AS day_net_from,
       CAST(day_net_to AS decimal(38, 4)) AS day_net_to,
       position
FROM summed
