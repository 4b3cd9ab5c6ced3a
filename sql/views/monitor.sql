CREATE OR REPLACE VIEW embedline.monitor_history WITH (security_barrier) AS
SELECT u.name AS use_case, m.feature, m.version AS model_version, x.metric, x.slice, x.first_day, x.last_day,
       x.rows, x.state, x.value, x.low, x.high, x.p_value, x.adjusted, x.excess, x.least, x.noise, x.detail,
       x.measured_at
FROM embedline.measurement x
JOIN embedline.model_version m ON m.id = x.model_version
JOIN embedline.use_case u ON u.id = m.use_case
JOIN embedline.my_use_case own ON own.use_case = u.id AND own.whole;

COMMENT ON VIEW embedline.monitor_history IS 'What monitoring found, for every model version, metric, slice and window of days';
COMMENT ON COLUMN embedline.monitor_history.use_case IS 'by name';
COMMENT ON COLUMN embedline.monitor_history.feature IS 'embedding, where the use case has but one';
COMMENT ON COLUMN embedline.monitor_history.model_version IS 'number of the version within its use case';
COMMENT ON COLUMN embedline.monitor_history.metric IS 'centroid, mix, novelty, accuracy, …: docs/monitoring.md has them all';
COMMENT ON COLUMN embedline.monitor_history.slice IS 'tag=value, or prediction=class; empty: all records';
COMMENT ON COLUMN embedline.monitor_history.first_day IS 'of the window, UTC';
COMMENT ON COLUMN embedline.monitor_history.last_day IS 'of the window, included';
COMMENT ON COLUMN embedline.monitor_history.rows IS 'it was measured on';
COMMENT ON COLUMN embedline.monitor_history.state IS 'no data, too few (rows to tell), usual, beyond';
COMMENT ON COLUMN embedline.monitor_history.value IS 'the size of the effect, or the metric itself';
COMMENT ON COLUMN embedline.monitor_history.low IS 'end of its 95 % interval';
COMMENT ON COLUMN embedline.monitor_history.high IS 'end of its 95 % interval';
COMMENT ON COLUMN embedline.monitor_history.p_value IS 'of the hypothesis that nothing has changed; null: the metric has none';
COMMENT ON COLUMN embedline.monitor_history.adjusted IS 'p_value, corrected for all that were looked at for the same window';
COMMENT ON COLUMN embedline.monitor_history.excess IS 'how far it is from usual in the direction that is bad; null: it never alarms';
COMMENT ON COLUMN embedline.monitor_history.least IS 'the smallest excess that matters';
COMMENT ON COLUMN embedline.monitor_history.noise IS 'the largest excess among the baseline''s own windows; null: it has too few';
COMMENT ON COLUMN embedline.monitor_history.detail IS 'what drifted: by class, by value, by cluster';
COMMENT ON COLUMN embedline.monitor_history.measured_at IS 'when';

CREATE OR REPLACE VIEW embedline.monitor_alarms WITH (security_barrier) AS
SELECT a.id, u.name AS use_case, m.feature, m.version AS model_version, a.metric, a.slice, a.since, a.raised,
       a.last_seen, a.cleared, x.value, x.low, x.high, x.adjusted, x.detail, a.told_at, a.acknowledged_at,
       a.acknowledged_by, a.remark, x.excess
FROM embedline.alarm a
JOIN embedline.model_version m ON m.id = a.model_version
JOIN embedline.use_case u ON u.id = m.use_case
JOIN embedline.my_use_case own ON own.use_case = u.id AND own.whole
LEFT JOIN embedline.measurement x ON x.model_version = a.model_version AND x.metric = a.metric
      AND x.slice = a.slice AND x.last_day = a.last_seen;

COMMENT ON VIEW embedline.monitor_alarms IS 'Every alarm there was, with what was measured when it was seen last';
COMMENT ON COLUMN embedline.monitor_alarms.id IS 'what embedline monitor --acknowledge takes';
COMMENT ON COLUMN embedline.monitor_alarms.use_case IS 'by name';
COMMENT ON COLUMN embedline.monitor_alarms.feature IS 'embedding, where the use case has but one';
COMMENT ON COLUMN embedline.monitor_alarms.model_version IS 'number of the version within its use case';
COMMENT ON COLUMN embedline.monitor_alarms.metric IS 'centroid, mix, novelty, accuracy, …: docs/monitoring.md has them all';
COMMENT ON COLUMN embedline.monitor_alarms.slice IS 'tag=value, or prediction=class; empty: all records';
COMMENT ON COLUMN embedline.monitor_alarms.since IS 'the first day of the first window that was beyond';
COMMENT ON COLUMN embedline.monitor_alarms.raised IS 'the last day of the window that made it an alarm';
COMMENT ON COLUMN embedline.monitor_alarms.last_seen IS 'the last day of the latest window that was beyond';
COMMENT ON COLUMN embedline.monitor_alarms.cleared IS 'the last day of the window that ended it; null: it is on';
COMMENT ON COLUMN embedline.monitor_alarms.value IS 'the size of the effect, or the metric itself';
COMMENT ON COLUMN embedline.monitor_alarms.low IS 'end of its 95 % interval';
COMMENT ON COLUMN embedline.monitor_alarms.high IS 'end of its 95 % interval';
COMMENT ON COLUMN embedline.monitor_alarms.adjusted IS 'p-value, corrected for all that were looked at with it';
COMMENT ON COLUMN embedline.monitor_alarms.excess IS 'how far it is from usual in the direction that is bad';
COMMENT ON COLUMN embedline.monitor_alarms.detail IS 'what drifted: by class, by value, by cluster';
COMMENT ON COLUMN embedline.monitor_alarms.told_at IS 'when its notice was sent; null: not yet';
COMMENT ON COLUMN embedline.monitor_alarms.acknowledged_at IS 'when somebody took it on';
COMMENT ON COLUMN embedline.monitor_alarms.acknowledged_by IS 'who';
COMMENT ON COLUMN embedline.monitor_alarms.remark IS 'what they said';

CREATE OR REPLACE VIEW embedline.monitor WITH (security_barrier) AS
SELECT DISTINCT ON (u.name, m.feature, x.metric, x.slice)
       u.name AS use_case, m.feature, m.version AS model_version, x.metric, x.slice, x.last_day,
       CASE WHEN a.acknowledged_at IS NOT NULL THEN 'acknowledged' WHEN a.id IS NOT NULL THEN 'alarm'
            WHEN x.state IN ('usual', 'beyond') THEN 'healthy' ELSE x.state END AS state,
       a.since, x.rows, x.value, x.low, x.high, x.adjusted, x.least, x.noise, a.id AS alarm
FROM embedline.measurement x
JOIN embedline.model_version m ON m.id = x.model_version AND m.state = 'active'
JOIN embedline.use_case u ON u.id = m.use_case
JOIN embedline.my_use_case own ON own.use_case = u.id AND own.whole
LEFT JOIN embedline.alarm a ON a.model_version = x.model_version AND a.metric = x.metric AND a.slice = x.slice
      AND a.cleared IS NULL
ORDER BY u.name, m.feature, x.metric, x.slice, x.last_day DESC;

COMMENT ON VIEW embedline.monitor IS 'How each use case is: one row per metric and slice of the serving version, of its latest window';
COMMENT ON COLUMN embedline.monitor.use_case IS 'by name';
COMMENT ON COLUMN embedline.monitor.feature IS 'embedding, where the use case has but one';
COMMENT ON COLUMN embedline.monitor.model_version IS 'number of the version within its use case';
COMMENT ON COLUMN embedline.monitor.metric IS 'centroid, mix, novelty, accuracy, …: docs/monitoring.md has them all';
COMMENT ON COLUMN embedline.monitor.slice IS 'tag=value, or prediction=class; empty: all records';
COMMENT ON COLUMN embedline.monitor.last_day IS 'of the latest window';
COMMENT ON COLUMN embedline.monitor.state IS
    'healthy; no data; too few (rows to tell); alarm: beyond the usual in two of three windows; acknowledged: somebody is at it';
COMMENT ON COLUMN embedline.monitor.since IS 'the first day of the alarm that is on';
COMMENT ON COLUMN embedline.monitor.rows IS 'the latest value was measured on';
COMMENT ON COLUMN embedline.monitor.value IS 'the size of the effect, or the metric itself';
COMMENT ON COLUMN embedline.monitor.low IS 'end of its 95 % interval';
COMMENT ON COLUMN embedline.monitor.high IS 'end of its 95 % interval';
COMMENT ON COLUMN embedline.monitor.adjusted IS 'p-value, corrected for all that were looked at for the same window';
COMMENT ON COLUMN embedline.monitor.least IS 'the smallest effect that matters';
COMMENT ON COLUMN embedline.monitor.noise IS 'the largest effect among the baseline''s own windows; null: it has too few';
COMMENT ON COLUMN embedline.monitor.alarm IS 'monitor_alarms.id of the one that is on';
