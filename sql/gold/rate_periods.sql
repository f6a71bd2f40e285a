-- The euro reference rate of each currency for every day: a published rate holds until the day before the next one (valid_to is that
-- next day). The euro itself has one without end.
SELECT currency,
       rate_date AS valid_from,
       lead(rate_date) OVER (PARTITION BY currency ORDER BY rate_date) AS valid_to,
       rate
FROM exchange_rates
WHERE rate > 0 AND currency <> 'EUR'
UNION ALL
SELECT 'EUR', DATE '1999-01-01', NULL, CAST(1 AS decimal(18, 6))
