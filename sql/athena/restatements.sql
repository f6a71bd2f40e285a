-- Made from sql/gold/restatements.sql by `freshet gold check --write`.
CREATE OR REPLACE VIEW restatements AS
WITH reported AS (
  SELECT
    revenue_changes.*,
    MIN(learned_on) OVER (PARTITION BY day, currency) AS first_learned_on
  FROM revenue_changes
)
SELECT
  day,
  currency,
  GREATEST(day, first_learned_on) AS first_reported_on,
  learned_on,
  learned_at,
  sale_id,
  sale_net_from,
  sale_net_to,
  net_change,
  day_net_from,
  day_net_to
FROM reported
WHERE
  learned_on > GREATEST(day, first_learned_on);
