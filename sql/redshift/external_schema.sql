-- Reads the lake from Amazon Redshift (Serverless or a cluster), as its current state: run once, as an administrator.
--
-- The names with a colon are psql variables:
--     psql -v database=freshet -v region=eu-west-1 -v role_arn=arn:aws:iam::123456789012:role/… \
--          -v readers=analysts -f sql/redshift/external_schema.sql
-- With the stack's own workgroup (RedshiftServerless=true), its output RedshiftExternalSchema is the first statement filled in, to be
-- pasted into the query editor. Elsewhere, role_arn is a role attached to the cluster that may do what RedshiftRole in template.yaml may.
--
-- A query sees the snapshot that was current when it began. The tables are read-only here: nobody but the consumer writes them.
-- change_log and quarantine find their files by partition projection, which Athena alone knows: ask Athena for these.

CREATE EXTERNAL SCHEMA IF NOT EXISTS lake FROM DATA CATALOG DATABASE :'database' REGION :'region' IAM_ROLE :'role_arn';

-- Who may read. Grants on an external schema are for all of its tables; the schema of the views below is granted by view.
GRANT USAGE ON SCHEMA lake TO ROLE :"readers";

CREATE SCHEMA IF NOT EXISTS gold;
GRANT USAGE ON SCHEMA gold TO ROLE :"readers";

-- Net revenue per day, in the currency of the sale and in EUR at the last rate published on or before the day.
-- WITH NO SCHEMA BINDING is what Redshift asks of a view over external tables; it also lets a new column appear without a drop.
CREATE OR REPLACE VIEW gold.net_revenue_by_day AS
WITH net AS (
    SELECT CAST(sold_at AS date) AS day,
           currency,
           sum((quantity - returned_quantity) * unit_price) AS net
    FROM lake.sales
    GROUP BY CAST(sold_at AS date), currency
),
rated AS (
    SELECT net.day, net.currency, net.net, rates.rate_date, rates.rate,
           row_number() OVER (PARTITION BY net.day, net.currency ORDER BY rates.rate_date DESC NULLS LAST) AS nearest
    FROM net
    LEFT JOIN lake.exchange_rates AS rates
        ON rates.currency = net.currency AND rates.rate_date <= net.day
)
SELECT day, currency, net, rate_date,
       CASE WHEN currency = 'EUR' THEN CAST(net AS double precision) ELSE CAST(net AS double precision) / CAST(rate AS double precision) END AS net_eur
FROM rated
WHERE nearest = 1
WITH NO SCHEMA BINDING;

-- The catalogue as the shop shows it now, without the columns of Freshet's own (_version, _position).
CREATE OR REPLACE VIEW gold.products AS
SELECT product_id, sku, title, price, currency, category, updated_at
FROM lake.products
WITH NO SCHEMA BINDING;

GRANT SELECT ON gold.net_revenue_by_day, gold.products TO ROLE :"readers";

-- Try it:
SELECT day, currency, net, net_eur FROM gold.net_revenue_by_day ORDER BY day DESC, currency LIMIT 31;
SELECT category, count(*) AS products, avg(price) AS price FROM gold.products GROUP BY category ORDER BY products DESC;
