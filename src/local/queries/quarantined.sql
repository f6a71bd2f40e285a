-- What could not be taken from the stream, and why.
SELECT reason, field, count(*) AS records, min(detail) AS detail
FROM quarantine
GROUP BY reason, field
ORDER BY records DESC, reason, field
