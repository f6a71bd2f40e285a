-- Made from sql/gold/sales_by_day.sql by `freshet gold check --write`.
CREATE OR REPLACE VIEW sales_by_day AS
WITH totals AS (
  SELECT
    CAST(sold_at AS DATE) AS day,
    currency,
    COUNT(*) AS sale_lines,
    SUM(CASE WHEN quantity > 0 THEN quantity * unit_price ELSE 0 END) AS gross,
    SUM((
      quantity - returned_quantity
    ) * unit_price) AS net
  FROM sales
  GROUP BY
    CAST(sold_at AS DATE),
    currency
), amounts AS (
  SELECT
    totals.day,
    totals.currency,
    measures.measure,
    targets.target,
    TRY_CAST(CASE WHEN measures.measure = 'gross' THEN totals.gross ELSE totals.net END AS DECIMAL(19, 4)) AS amount
  FROM totals
  CROSS JOIN (
    SELECT
      'gross' AS measure
    UNION ALL
    SELECT
      'net'
  ) AS measures
  CROSS JOIN (
    SELECT
      'GBP' AS target
    UNION ALL
    SELECT
      'EUR'
  ) AS targets
), rated AS (
  SELECT
    amounts.day,
    amounts.currency,
    amounts.measure,
    amounts.target,
    amounts.amount,
    amounts.amount * wanted.rate AS numerator,
    own.rate AS rate,
    own.valid_from AS rate_date
  FROM amounts
  LEFT JOIN rate_periods AS own
    ON own.currency = amounts.currency
    AND own.valid_from <= amounts.day
    AND (
      own.valid_to > amounts.day OR own.valid_to IS NULL
    )
  LEFT JOIN rate_periods AS wanted
    ON wanted.currency = amounts.target
    AND wanted.valid_from <= amounts.day
    AND (
      wanted.valid_to > amounts.day OR wanted.valid_to IS NULL
    )
), estimated AS (
  SELECT
    rated.*,
    TRY_CAST(CAST(numerator AS DOUBLE) / CAST(rate AS DOUBLE) AS DECIMAL(19, 4)) AS estimate
  FROM rated
), divided AS (
  SELECT
    estimated.*,
    CAST(numerator - estimate * rate AS DECIMAL(24, 10)) AS left_over
  FROM estimated
), converted AS (
  SELECT
    day,
    currency,
    measure,
    target,
    rate,
    rate_date,
    CASE
      WHEN currency = target
      THEN amount
      WHEN left_over + left_over >= rate * 0.0001
      THEN estimate + 0.0001
      WHEN left_over + left_over < rate * -0.0001
      THEN estimate - 0.0001
      ELSE estimate
    END AS value
  FROM divided
), wide AS (
  SELECT
    day,
    currency,
    MAX(rate) AS rate,
    MAX(rate_date) AS rate_date,
    MAX(CASE WHEN measure = 'gross' AND target = 'GBP' THEN value END) AS gross_gbp,
    MAX(CASE WHEN measure = 'net' AND target = 'GBP' THEN value END) AS net_gbp,
    MAX(CASE WHEN measure = 'gross' AND target = 'EUR' THEN value END) AS gross_eur,
    MAX(CASE WHEN measure = 'net' AND target = 'EUR' THEN value END) AS net_eur
  FROM converted
  GROUP BY
    day,
    currency
)
SELECT
  totals.day,
  totals.currency,
  totals.sale_lines,
  CAST(totals.gross AS DECIMAL(38, 4)) AS gross,
  CAST(totals.gross - totals.net AS DECIMAL(38, 4)) AS returned,
  CAST(totals.net AS DECIMAL(38, 4)) AS net,
  CAST(wide.gross_gbp AS DECIMAL(19, 4)) AS gross_gbp,
  CAST(wide.gross_gbp - wide.net_gbp AS DECIMAL(19, 4)) AS returned_gbp,
  CAST(wide.net_gbp AS DECIMAL(19, 4)) AS net_gbp,
  CAST(wide.gross_eur AS DECIMAL(19, 4)) AS gross_eur,
  CAST(wide.gross_eur - wide.net_eur AS DECIMAL(19, 4)) AS returned_eur,
  CAST(wide.net_eur AS DECIMAL(19, 4)) AS net_eur,
  wide.rate,
  wide.rate_date
FROM totals
JOIN wide
  ON wide.day = totals.day AND wide.currency = totals.currency;
