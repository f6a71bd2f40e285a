-- What each known customer is worth: invoices, units kept and sent back, and net revenue in euros at the rate of each day of sale.
-- net_eur is null where a currency that the customer paid in has no rate on one of those days.
WITH days AS (
    SELECT customer_id,
           currency,
           CAST(sold_at AS date) AS day,
           sum(quantity - returned_quantity) AS units,
           sum(returned_quantity + CASE WHEN quantity < 0 THEN -quantity ELSE 0 END) AS units_returned,
           TRY_CAST(sum((quantity - returned_quantity) * unit_price) AS decimal(19, 4)) AS net
    FROM sales
    WHERE customer_id IS NOT NULL
    GROUP BY customer_id, currency, CAST(sold_at AS date)
),
-- Divided to four decimals, half up, exactly: see products_eur.
estimated AS (
    SELECT days.*,
           rate_periods.rate,
           TRY_CAST(CAST(days.net AS double) / CAST(rate_periods.rate AS double) AS decimal(19, 4)) AS estimate
    FROM days
    LEFT JOIN rate_periods
        ON rate_periods.currency = days.currency
        AND rate_periods.valid_from <= days.day
        AND (rate_periods.valid_to > days.day OR rate_periods.valid_to IS NULL)
),
divided AS (
    SELECT estimated.*, CAST(net - estimate * rate AS decimal(24, 10)) AS left_over
    FROM estimated
),
converted AS (
    SELECT customer_id,
           day,
           units,
           units_returned,
           CASE
               WHEN left_over + left_over >= rate * 0.0001 THEN estimate + 0.0001
               WHEN left_over + left_over < rate * -0.0001 THEN estimate - 0.0001
               ELSE estimate
           END AS net_eur
    FROM divided
),
values_by_customer AS (
    SELECT customer_id,
           sum(units) AS units,
           sum(units_returned) AS units_returned,
           CASE WHEN count(*) = count(net_eur) THEN sum(net_eur) END AS net_eur
    FROM converted
    GROUP BY customer_id
),
invoices_by_customer AS (
    SELECT customer_id,
           count(DISTINCT CASE WHEN quantity > 0 THEN invoice_no END) AS invoices,
           CAST(min(sold_at) AS date) AS first_day,
           CAST(max(sold_at) AS date) AS last_day
    FROM sales
    WHERE customer_id IS NOT NULL
    GROUP BY customer_id
)
SELECT values_by_customer.customer_id,
       invoices_by_customer.first_day,
       invoices_by_customer.last_day,
       invoices_by_customer.invoices,
       values_by_customer.units,
       values_by_customer.units_returned,
       CAST(values_by_customer.net_eur AS decimal(38, 4)) AS net_eur
FROM values_by_customer
JOIN invoices_by_customer
    ON invoices_by_customer.customer_id = values_by_customer.customer_id
