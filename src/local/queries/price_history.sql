-- Every price a product ever showed, by the shop's own date of change; equal neighbours told once.
WITH shown AS (
    SELECT json_extract_string(after, '$.sku') AS sku,
           CAST(occurred_at AS date) AS since,
           CAST(json_extract_string(after, '$.price') AS decimal(18, 4)) AS price,
           version
    FROM change_log
    WHERE table_name = 'products' AND op <> 'd'
    QUALIFY row_number() OVER (PARTITION BY sku, since ORDER BY version DESC) = 1
)
SELECT sku, since, price
FROM shown
QUALIFY price IS DISTINCT FROM lag(price) OVER (PARTITION BY sku ORDER BY since, version)
ORDER BY sku, since
