-- Made from the contracts by `freshet docs build --sql`.

-- The rows that changed last.
SELECT product_id, sku, title, description, price, currency, _version
FROM products
ORDER BY _version DESC
LIMIT 10;

-- The life of one row: whatever happened to it, as it was told.
SELECT version, op, source, occurred_at, after, patch
FROM change_log
WHERE table_name = 'products'
    AND key = (SELECT max(key) FROM change_log WHERE table_name = 'products')
ORDER BY version;

-- What was refused, and why.
SELECT reason, field, count(*) AS line_count, max(arrived_at) AS last_seen
FROM quarantine
WHERE table_name = 'products'
GROUP BY reason, field
ORDER BY line_count DESC;
