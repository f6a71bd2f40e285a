-- Every change of a sale as it was logged: the columns that make up revenue, read from its JSON, each line of the stream once.
-- A column that a partial update does not carry is null, and so are all of them where a sale or all sales (key *) end.
--
-- materialise: daily, key: shard_id, position, incremental by: ingest_date
WITH copies AS (
    SELECT key,
           op,
           version,
           occurred_at,
           arrived_at,
           shard_id,
           position,
           ingest_date,
           patch IS NOT NULL AS is_patch,
           coalesce(patch, after) AS told,
           -- A batch that was cut anew when it came again is logged under both names.
           row_number() OVER (PARTITION BY ingest_date, shard_id, position ORDER BY version) AS copy_number
    FROM change_log
    WHERE table_name = 'sales'
)
SELECT key,
       op,
       version,
       is_patch,
       CAST(occurred_at AS timestamp) AS occurred_at,
       CAST(arrived_at AS timestamp) AS arrived_at,
       shard_id,
       position,
       CAST(nullif(substr(json_extract_string(told, '$.sold_at'), 1, 10), '') AS date) AS sold_on,
       CAST(nullif(json_extract_string(told, '$.quantity'), '') AS integer) AS quantity,
       CAST(nullif(json_extract_string(told, '$.returned_quantity'), '') AS integer) AS returned_quantity,
       CAST(nullif(json_extract_string(told, '$.unit_price'), '') AS decimal(18, 4)) AS unit_price,
       nullif(json_extract_string(told, '$.currency'), '') AS currency,
       CAST(ingest_date AS date) AS ingest_date
FROM copies
WHERE copy_number = 1
