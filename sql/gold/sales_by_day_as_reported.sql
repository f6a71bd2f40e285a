-- What a day's net revenue was said to be: one row for each day on which we learned better, which holds from reported_on to the day
-- before superseded_on.
--
-- As reported on a date X:  reported_on <= X AND (superseded_on IS NULL OR superseded_on > X)
-- As known now:             superseded_on IS NULL
WITH learned AS (
    SELECT day, currency, learned_on, sum(net_change) AS net_change, count(*) AS changes
    FROM revenue_changes
    GROUP BY day, currency, learned_on
)
SELECT day,
       currency,
       learned_on AS reported_on,
       lead(learned_on) OVER (PARTITION BY day, currency ORDER BY learned_on) AS superseded_on,
       CAST(sum(net_change) OVER (
           PARTITION BY day, currency ORDER BY learned_on ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
       ) AS decimal(38, 4)) AS net,
       CAST(net_change AS decimal(38, 4)) AS net_change,
       changes
FROM learned
