-- Net revenue per UTC day of the sale, in GBP and in EUR at the last rate published on or before that day.
WITH gbp AS (
    SELECT CAST(sold_at AS date) AS day,
           sum((quantity - returned_quantity) * unit_price) AS net_gbp
    FROM sales
    GROUP BY 1
)
SELECT gbp.day,
       gbp.net_gbp,
       rates.rate_date,
       rates.rate
FROM gbp
ASOF LEFT JOIN (SELECT rate_date, rate FROM exchange_rates WHERE currency = 'GBP') AS rates
    ON gbp.day >= rates.rate_date
ORDER BY gbp.day
