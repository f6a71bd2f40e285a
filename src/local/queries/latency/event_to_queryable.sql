-- Seconds from acceptance at the edge to the end of the invocation that committed the event.
SELECT quantile_cont(lag, 0.5) AS p50,
       quantile_cont(lag, 0.95) AS p95,
       quantile_cont(lag, 0.99) AS p99,
       max(lag) AS longest,
       count(*) AS events
FROM (
    SELECT b.finished_at - epoch(e.accepted_at) AS lag
    FROM change_log AS e
    ASOF JOIN batches AS b ON e.shard_id = b.shard_id AND e.position >= b.first
    WHERE e.position <= b.last
)
