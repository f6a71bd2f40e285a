-- How long changes take to be queryable, per table and day of commit, in milliseconds: from the source's time of the change (event)
-- and from its acceptance at our edge (accept), as the receipts of the stream's batches tell.
-- Percentiles of a day are made from those of its batches: of each batch half the changes are taken to be as late as its p50, the next
-- 45 % as its p95 and the last 5 % as its p99. That errs towards late, but for the last 1 % of a batch, which may be later than its p99:
-- what is told as p50, p95 and p99 is no less than the true p49, p94 and p98 of batches that brought nothing but changes. The lags of
-- duplicates and stale lines count in the percentiles of their batch, too, and not in its weight.
--
-- not in redshift: receipts are found by partition projection, which Athena alone knows
WITH batches AS (
    SELECT table_name,
           CAST(committed_at AS date) AS day,
           inserted + updated + deleted AS changes,
           event_lag_ms_p50,
           event_lag_ms_p95,
           event_lag_ms_p99,
           accept_lag_ms_p50,
           accept_lag_ms_p95,
           accept_lag_ms_p99
    FROM receipts
    WHERE kind = 'stream' AND table_name IS NOT NULL AND inserted + updated + deleted > 0
),
masses AS (
    SELECT table_name, day, 'event' AS lag_of, event_lag_ms_p50 AS lag_ms, changes * 50 AS mass FROM batches
    UNION ALL
    SELECT table_name, day, 'event', event_lag_ms_p95, changes * 45 FROM batches
    UNION ALL
    SELECT table_name, day, 'event', event_lag_ms_p99, changes * 5 FROM batches
    UNION ALL
    SELECT table_name, day, 'accept', accept_lag_ms_p50, changes * 50 FROM batches
    UNION ALL
    SELECT table_name, day, 'accept', accept_lag_ms_p95, changes * 45 FROM batches
    UNION ALL
    SELECT table_name, day, 'accept', accept_lag_ms_p99, changes * 5 FROM batches
),
running AS (
    SELECT table_name, day, lag_of, lag_ms,
           sum(mass) OVER (
               PARTITION BY table_name, day, lag_of ORDER BY lag_ms ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
           ) AS mass_so_far,
           sum(mass) OVER (PARTITION BY table_name, day, lag_of) AS mass_in_all
    FROM masses
    WHERE lag_ms IS NOT NULL
),
percentiles AS (
    SELECT table_name, day,
           min(CASE WHEN lag_of = 'event' AND mass_so_far * 100 >= mass_in_all * 50 THEN lag_ms END) AS event_p50_ms,
           min(CASE WHEN lag_of = 'event' AND mass_so_far * 100 >= mass_in_all * 95 THEN lag_ms END) AS event_p95_ms,
           min(CASE WHEN lag_of = 'event' AND mass_so_far * 100 >= mass_in_all * 99 THEN lag_ms END) AS event_p99_ms,
           min(CASE WHEN lag_of = 'accept' AND mass_so_far * 100 >= mass_in_all * 50 THEN lag_ms END) AS accept_p50_ms,
           min(CASE WHEN lag_of = 'accept' AND mass_so_far * 100 >= mass_in_all * 95 THEN lag_ms END) AS accept_p95_ms,
           min(CASE WHEN lag_of = 'accept' AND mass_so_far * 100 >= mass_in_all * 99 THEN lag_ms END) AS accept_p99_ms
    FROM running
    GROUP BY table_name, day
),
counted AS (
    SELECT table_name, day, count(*) AS batches, CAST(sum(changes) AS bigint) AS changes
    FROM batches
    GROUP BY table_name, day
)
SELECT counted.table_name,
       counted.day,
       counted.batches,
       counted.changes,
       percentiles.event_p50_ms,
       percentiles.event_p95_ms,
       percentiles.event_p99_ms,
       percentiles.accept_p50_ms,
       percentiles.accept_p95_ms,
       percentiles.accept_p99_ms
FROM counted
LEFT JOIN percentiles
    ON percentiles.table_name = counted.table_name
    AND percentiles.day = counted.day
