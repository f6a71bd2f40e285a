-- Made from sql/gold/customer_value.sql by `freshet gold check --write`.
CREATE OR REPLACE VIEW customer_value AS
WITH days AS (
  SELECT
    customer_id,
    currency,
    CAST(sold_at AS DATE) AS day,
    SUM(quantity - returned_quantity) AS units,
    SUM(returned_quantity + CASE WHEN quantity < 0 THEN -quantity ELSE 0 END) AS units_returned,
    TRY_CAST(SUM((
      quantity - returned_quantity
    ) * unit_price) AS DECIMAL(19, 4)) AS net
  FROM sales
  WHERE
    NOT customer_id IS NULL
  GROUP BY
    customer_id,
    currency,
    CAST(sold_at AS DATE)
), estimated AS (
  SELECT
    days.*,
    rate_periods.rate,
    TRY_CAST(CAST(days.net AS DOUBLE) / CAST(rate_periods.rate AS DOUBLE) AS DECIMAL(19, 4)) AS estimate
  FROM days
  LEFT JOIN rate_periods
    ON rate_periods.currency = days.currency
    AND rate_periods.valid_from <= days.day
    AND (
      rate_periods.valid_to > days.day OR rate_periods.valid_to IS NULL
    )
), divided AS (
  SELECT
    estimated.*,
    CAST(net - estimate * rate AS DECIMAL(24, 10)) AS left_over
  FROM estimated
), converted AS (
  SELECT
    customer_id,
    day,
    units,
    units_returned,
    CASE
      WHEN left_over + left_over >= rate * 0.0001
      THEN estimate + 0.0001
      WHEN left_over + left_over < rate * -0.0001
      THEN estimate - 0.0001
      ELSE estimate
    END AS net_eur
  FROM divided
), values_by_customer AS (
  SELECT
    customer_id,
    SUM(units) AS units,
    SUM(units_returned) AS units_returned,
    CASE WHEN COUNT(*) = COUNT(net_eur) THEN SUM(net_eur) END AS net_eur
  FROM converted
  GROUP BY
    customer_id
), invoices_by_customer AS (
  SELECT
    customer_id,
    COUNT(DISTINCT CASE WHEN quantity > 0 THEN invoice_no END) AS invoices,
    CAST(MIN(sold_at) AS DATE) AS first_day,
    CAST(MAX(sold_at) AS DATE) AS last_day
  FROM sales
  WHERE
    NOT customer_id IS NULL
  GROUP BY
    customer_id
)
SELECT
  values_by_customer.customer_id,
  invoices_by_customer.first_day,
  invoices_by_customer.last_day,
  invoices_by_customer.invoices,
  values_by_customer.units,
  values_by_customer.units_returned,
  CAST(values_by_customer.net_eur AS DECIMAL(38, 4)) AS net_eur
FROM values_by_customer
JOIN invoices_by_customer
  ON invoices_by_customer.customer_id = values_by_customer.customer_id;
