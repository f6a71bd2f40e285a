-- Made from the contracts by `freshet docs build --sql`.

-- The rows that changed last.
SELECT sale_id, invoice_no, line, sku, description, quantity, _version
FROM sales
ORDER BY _version DESC
LIMIT 10;

-- Rows by day, pruned to what is asked for: the table lies by `day(sold_at)`.
SELECT CAST(sold_at AS date) AS day, count(*) AS row_count
FROM sales
WHERE sold_at >= DATE '2010-12-01'
GROUP BY CAST(sold_at AS date)
ORDER BY day DESC
LIMIT 31;

-- The life of one row: whatever happened to it, as it was told.
SELECT version, op, source, occurred_at, after, patch
FROM change_log
WHERE table_name = 'sales'
    AND key = (SELECT max(key) FROM change_log WHERE table_name = 'sales')
ORDER BY version;

-- What was refused, and why.
SELECT reason, field, count(*) AS line_count, max(arrived_at) AS last_seen
FROM quarantine
WHERE table_name = 'sales'
GROUP BY reason, field
ORDER BY line_count DESC;
