-- Net revenue and returns per month and currency, kept in Redshift: an example of a materialised view over the lake.
--
-- A materialised view reads external tables but no late-binding view, so it names lake.sales itself. Redshift renews it by
-- REFRESH MATERIALIZED VIEW gold.revenue_by_month, here at each `freshet redshift apply`; a schedule of its own is the query
-- editor's. There is no CREATE OR REPLACE: for the moment between the two statements the view is not there.
DROP MATERIALIZED VIEW IF EXISTS gold.revenue_by_month;

CREATE MATERIALIZED VIEW gold.revenue_by_month AUTO REFRESH NO AS
SELECT
  DATE_TRUNC('month', sold_at) AS month,
  currency,
  COUNT(*) AS line_count,
  SUM(quantity * unit_price) AS gross,
  SUM(returned_quantity * unit_price) AS returned,
  SUM((quantity - returned_quantity) * unit_price) AS net
FROM lake.sales
GROUP BY 1, 2;
