-- Made from sql/gold/products_eur.sql by `freshet gold check --write`.
CREATE OR REPLACE VIEW products_eur AS
WITH published AS (
  SELECT
    currency,
    rate_date,
    rate,
    ROW_NUMBER() OVER (PARTITION BY currency ORDER BY rate_date DESC) AS recency
  FROM exchange_rates
  WHERE
    rate_date <= CURRENT_DATE AND rate > 0
), estimated AS (
  SELECT
    products.product_id,
    products.sku,
    products.title,
    products.category_id,
    products.category,
    products.price,
    products.currency,
    published.rate,
    published.rate_date,
    products.updated_at,
    TRY_CAST(CAST(products.price AS DOUBLE) / CAST(published.rate AS DOUBLE) AS DECIMAL(19, 4)) AS estimate
  FROM products
  LEFT JOIN published
    ON published.currency = products.currency
    AND published.recency = 1
    AND products.currency <> 'EUR'
), divided AS (
  SELECT
    estimated.*,
    CAST(price - estimate * rate AS DECIMAL(24, 10)) AS left_over
  FROM estimated
)
SELECT
  product_id,
  sku,
  title,
  category_id,
  category,
  price,
  currency,
  CAST(CASE
    WHEN currency = 'EUR'
    THEN price
    WHEN left_over + left_over >= rate * 0.0001
    THEN estimate + 0.0001
    WHEN left_over + left_over < rate * -0.0001
    THEN estimate - 0.0001
    ELSE estimate
  END AS DECIMAL(19, 4)) AS price_eur,
  rate,
  rate_date,
  updated_at
FROM divided;
