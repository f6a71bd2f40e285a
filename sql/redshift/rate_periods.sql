-- Made from sql/gold/rate_periods.sql by `freshet gold check --write`.
CREATE OR REPLACE VIEW gold.rate_periods AS
SELECT
  currency,
  rate_date AS valid_from,
  LEAD(rate_date) OVER (PARTITION BY currency ORDER BY rate_date) AS valid_to,
  rate
FROM lake.exchange_rates
WHERE
  rate > 0 AND currency <> 'EUR'
UNION ALL
SELECT
  'EUR',
  CAST('1999-01-01' AS DATE),
  NULL,
  CAST(1 AS DECIMAL(18, 6))
WITH NO SCHEMA BINDING;
