-- Every product's price in its own currency and in euros, with the rate used: the last one published on or before today.
-- A price in euros needs no rate; where none is known, price_eur is null.
--
-- price_eur is price / rate to four decimals, half up, exact below 300 billion euros. Engines divide decimals in ways of
-- their own (DuckDB as doubles), so the quotient is estimated first; what it leaves over is a product and a difference of
-- decimals, exact in all of them, and says whether the last digit is right.
WITH published AS (
    SELECT currency,
           rate_date,
           rate,
           row_number() OVER (PARTITION BY currency ORDER BY rate_date DESC NULLS LAST) AS recency
    FROM exchange_rates
    WHERE rate_date <= current_date AND rate > 0
),
estimated AS (
    SELECT products.product_id,
           products.sku,
           products.title,
           products.category_id,
           products.category,
           products.price,
           products.currency,
           published.rate,
           published.rate_date,
           products.updated_at,
           -- Null where a price has no room, or the whole view would fail.
           TRY_CAST(CAST(products.price AS double) / CAST(published.rate AS double) AS decimal(19, 4)) AS estimate
    FROM products
    LEFT JOIN published
        ON published.currency = products.currency
        AND published.recency = 1
        AND products.currency <> 'EUR'
),
divided AS (
    SELECT estimated.*,
           CAST(price - estimate * rate AS decimal(24, 10)) AS left_over
    FROM estimated
)
SELECT product_id,
       sku,
       title,
       category_id,
       category,
       price,
       currency,
       CAST(
           CASE
               WHEN currency = 'EUR' THEN price
               WHEN left_over + left_over >= rate * 0.0001 THEN estimate + 0.0001
               WHEN left_over + left_over < rate * -0.0001 THEN estimate - 0.0001
               ELSE estimate
           END AS decimal(19, 4)
       ) AS price_eur,
       rate,
       rate_date,
       updated_at
FROM divided
