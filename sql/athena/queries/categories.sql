-- Made from the contracts by `freshet docs build --sql`.

-- The rows that changed last.
SELECT category_id, name, slug, image_url, created_at, updated_at, _version
FROM categories
ORDER BY _version DESC
LIMIT 10;

-- The life of one row: whatever happened to it, as it was told.
SELECT version, op, source, occurred_at, after, patch
FROM change_log
WHERE table_name = 'categories'
    AND key = (SELECT max(key) FROM change_log WHERE table_name = 'categories')
ORDER BY version;

-- What was refused, and why.
SELECT reason, field, count(*) AS line_count, max(arrived_at) AS last_seen
FROM quarantine
WHERE table_name = 'categories'
GROUP BY reason, field
ORDER BY line_count DESC;
