-- Units that came back: returns of known sales, and returns that name no sale (negative quantity).
SELECT sku,
       sum(returned_quantity + CASE WHEN invoice_no LIKE 'C%' THEN -quantity ELSE 0 END) AS units
FROM sales
GROUP BY sku
HAVING units > 0
ORDER BY units DESC, sku
LIMIT 10
