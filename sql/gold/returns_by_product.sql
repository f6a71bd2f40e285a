-- What came back of each product, in units and in money of its currency: returns of known sales, and returns that name no sale (a
-- negative quantity at a price; without a price it is a correction of the stock).
WITH lines AS (
    SELECT sku,
           currency,
           description,
           sold_at,
           unit_price,
           CASE WHEN quantity > 0 THEN quantity ELSE 0 END AS units_sold,
           returned_quantity + CASE WHEN quantity < 0 AND unit_price > 0 THEN -quantity ELSE 0 END AS units_returned,
           row_number() OVER (PARTITION BY sku, currency ORDER BY sold_at DESC, sale_id DESC) AS from_last
    FROM sales
)
SELECT sku,
       currency,
       max(CASE WHEN from_last = 1 THEN description END) AS description,
       sum(units_sold) AS units_sold,
       sum(units_returned) AS units_returned,
       CAST(sum(units_returned) AS double) / nullif(CAST(sum(units_sold) AS double), 0) AS share_returned,
       CAST(sum(units_returned * unit_price) AS decimal(38, 4)) AS value_returned
FROM lines
GROUP BY sku, currency
HAVING sum(units_returned) > 0
