-- Made from sql/gold/sales_by_day_as_reported.sql by `freshet gold check --write`.
CREATE OR REPLACE VIEW sales_by_day_as_reported AS
WITH learned AS (
  SELECT
    day,
    currency,
    learned_on,
    SUM(net_change) AS net_change,
    COUNT(*) AS changes
  FROM revenue_changes
  GROUP BY
    day,
    currency,
    learned_on
)
SELECT
  day,
  currency,
  learned_on AS reported_on,
  LEAD(learned_on) OVER (PARTITION BY day, currency ORDER BY learned_on) AS superseded_on,
  CAST(SUM(net_change) OVER (
    PARTITION BY day, currency
    ORDER BY learned_on
    ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
  ) AS DECIMAL(38, 4)) AS net,
  CAST(net_change AS DECIMAL(38, 4)) AS net_change,
  changes
FROM learned;
