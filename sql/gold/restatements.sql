-- Why a day's revenue is not what we said: each change learned after the day was first reported, when, through which sale, and what
-- the day stood at before and after. A day is first reported when it is over, or on the day we first heard anything of it.
WITH reported AS (
    SELECT revenue_changes.*, min(learned_on) OVER (PARTITION BY day, currency) AS first_learned_on
    FROM revenue_changes
)
SELECT day,
       currency,
       greatest(day, first_learned_on) AS first_reported_on,
       learned_on,
       learned_at,
       sale_id,
       sale_net_from,
       sale_net_to,
       net_change,
       day_net_from,
       day_net_to
FROM reported
WHERE learned_on > greatest(day, first_learned_on)
