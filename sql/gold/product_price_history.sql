-- What every product cost when: one row for each time its price stayed the same, by the source's time of change. Stock code and title
-- are those last told.
--
-- At any moment the change with the greatest version counts among those of that time or earlier, whenever they arrived: a late one
-- splits an interval. valid_to is where the next price begins or the product ends, null while the price still holds.
WITH changes AS (
    SELECT key, op, version, position, is_patch, changed_at, price, currency
    FROM product_changes
    WHERE op <> 't'
    UNION ALL
    -- The end of all rows is the end of each.
    SELECT products.key, 'd', ends.version, ends.position, FALSE, ends.changed_at, NULL, NULL
    FROM (SELECT DISTINCT key FROM product_changes WHERE op <> 't') AS products
    CROSS JOIN (SELECT version, position, changed_at FROM product_changes WHERE op = 't') AS ends
),
ranked AS (
    SELECT key, op, is_patch, changed_at, price, currency,
           lpad(CAST(row_number() OVER (PARTITION BY key ORDER BY version, position) AS varchar), 12, '0') AS newness
    FROM changes
),
-- The greatest version so far that says anything of the row, of its price, of its currency; what it says follows its rank.
known AS (
    SELECT key, changed_at, newness,
           max(CASE WHEN NOT is_patch THEN newness || op END) OVER (
               PARTITION BY key ORDER BY changed_at, newness ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
           ) AS row_by,
           max(CASE WHEN price IS NOT NULL THEN newness || CAST(price AS varchar) END) OVER (
               PARTITION BY key ORDER BY changed_at, newness ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
           ) AS price_by,
           max(CASE WHEN currency IS NOT NULL THEN newness || currency END) OVER (
               PARTITION BY key ORDER BY changed_at, newness ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
           ) AS currency_by,
           row_number() OVER (PARTITION BY key, changed_at ORDER BY newness DESC) AS from_last
    FROM ranked
),
-- Empty text where there is no row: before its first, and after its end.
states AS (
    SELECT key, changed_at,
           CASE
               WHEN row_by IS NULL OR substr(row_by, 13) = 'd' THEN ''
               ELSE substr(currency_by, 13) || ' ' || substr(price_by, 13)
           END AS state
    FROM known
    WHERE from_last = 1
),
followed AS (
    SELECT key, changed_at, state, lag(state) OVER (PARTITION BY key ORDER BY changed_at) AS state_before
    FROM states
),
bounds AS (
    SELECT key, changed_at, state, lead(changed_at) OVER (PARTITION BY key ORDER BY changed_at) AS changed_next
    FROM followed
    WHERE state <> coalesce(state_before, '')
),
named AS (
    SELECT key, sku, title, row_number() OVER (PARTITION BY key ORDER BY version DESC, position DESC) AS from_last
    FROM product_changes
    WHERE op <> 'd' AND op <> 't' AND NOT is_patch
)
SELECT bounds.key AS product_id,
       named.sku,
       named.title,
       CAST(substr(bounds.state, 5) AS decimal(18, 4)) AS price,
       substr(bounds.state, 1, 3) AS currency,
       bounds.changed_at AS valid_from,
       bounds.changed_next AS valid_to,
       bounds.changed_next IS NULL AS is_current
FROM bounds
JOIN named
    ON named.key = bounds.key
    AND named.from_last = 1
WHERE bounds.state <> ''
