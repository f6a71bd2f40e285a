-- Made from sql/gold/revenue_changes.sql by `freshet gold check --write`.
CREATE OR REPLACE VIEW gold.revenue_changes AS
SELECT
  day,
  currency,
  learned_at,
  learned_on,
  sale_id,
  sale_net_from,
  sale_net_to,
  net_change,
  day_net_from,
  day_net_to,
  position
FROM lake.revenue_changes
WITH NO SCHEMA BINDING;
