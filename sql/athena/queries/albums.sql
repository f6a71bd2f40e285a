-- Made from the contracts by `freshet docs build --sql`.

-- The rows that changed last.
SELECT album_id, title, album_type, artist_id, artists, release_date, _version
FROM albums
ORDER BY _version DESC
LIMIT 10;

-- The life of one row: whatever happened to it, as it was told.
SELECT version, op, source, occurred_at, after, patch
FROM change_log
WHERE table_name = 'albums'
    AND key = (SELECT max(key) FROM change_log WHERE table_name = 'albums')
ORDER BY version;

-- What was refused, and why.
SELECT reason, field, count(*) AS line_count, max(arrived_at) AS last_seen
FROM quarantine
WHERE table_name = 'albums'
GROUP BY reason, field
ORDER BY line_count DESC;
