-- Made from the contracts by `freshet docs build --sql`.

-- The rows that changed last.
SELECT currency, rate_date, rate, _version
FROM exchange_rates
ORDER BY _version DESC
LIMIT 10;

-- Rows by day, pruned to what is asked for: the table lies by `month(rate_date)`.
SELECT CAST(rate_date AS date) AS day, count(*) AS row_count
FROM exchange_rates
WHERE rate_date >= DATE '2010-12-01'
GROUP BY CAST(rate_date AS date)
ORDER BY day DESC
LIMIT 31;

-- The life of one row: whatever happened to it, as it was told.
SELECT version, op, source, occurred_at, after, patch
FROM change_log
WHERE table_name = 'exchange_rates'
    AND key = (SELECT max(key) FROM change_log WHERE table_name = 'exchange_rates')
ORDER BY version;

-- What was refused, and why.
SELECT reason, field, count(*) AS line_count, max(arrived_at) AS last_seen
FROM quarantine
WHERE table_name = 'exchange_rates'
GROUP BY reason, field
ORDER BY line_count DESC;
