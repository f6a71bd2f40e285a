-- Every change of a product as it was logged: name and price, read from its JSON, each line of the stream once.
-- A column that a partial update does not carry is null, and so are all of them where a product or all products (key *) end.
--
-- materialise: daily, key: shard_id, position, incremental by: ingest_date
WITH copies AS (
    SELECT key,
           op,
           version,
           occurred_at,
           accepted_at,
           shard_id,
           position,
           ingest_date,
           patch IS NOT NULL AS is_patch,
           coalesce(patch, after) AS told,
           -- A batch that was cut anew when it came again is logged under both names.
           row_number() OVER (PARTITION BY ingest_date, shard_id, position ORDER BY version) AS copy_number
    FROM change_log
    WHERE table_name = 'products'
)
SELECT key,
       op,
       version,
       is_patch,
       -- The source's own time of the change; where it tells none, as for a row that vanished, when that was noticed.
       CAST(coalesce(occurred_at, accepted_at) AS timestamp) AS changed_at,
       shard_id,
       position,
       nullif(json_extract_string(told, '$.sku'), '') AS sku,
       nullif(json_extract_string(told, '$.title'), '') AS title,
       CAST(nullif(json_extract_string(told, '$.price'), '') AS decimal(18, 4)) AS price,
       nullif(json_extract_string(told, '$.currency'), '') AS currency,
       CAST(ingest_date AS date) AS ingest_date
FROM copies
WHERE copy_number = 1
