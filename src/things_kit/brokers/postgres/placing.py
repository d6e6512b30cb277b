"""SQL: messages get their places after their commit, and are found by them. The words in braces are filled in by `functions`."""

from typing import Final

PLACING: Final = (
    # A segment's ids ascend, so that the place of each is found by halving; where none is missing between the first and the last,
    # as after a large batch, they are one range of the index, read in a quarter of the time.
    """CREATE OR REPLACE FUNCTION {s}.messages_at(p_topic integer, p_first bigint, p_last bigint) RETURNS TABLE (off bigint,
        key bytea, value bytea, headers text, id text, stamp timestamptz, target text) LANGUAGE sql STABLE AS $body$
        SELECT g.first + CASE WHEN g.whole THEN m.seq - g.seqs[1] ELSE width_bucket(m.seq, g.seqs) - 1 END,
            m.key, m.value, m.headers, m.id, m.time, m.target
        FROM (
            SELECT *, greatest(p_first - first + 1, 1) AS low_at, least(p_last - first + 1, cardinality(seqs)) AS high_at,
                seqs[cardinality(seqs)] - seqs[1] = cardinality(seqs) - 1 AS whole
            FROM {s}.segment
            WHERE topic = p_topic AND first <= p_last AND first >= coalesce(
                (SELECT max(b.first) FROM {s}.segment b WHERE b.topic = p_topic AND b.first <= p_first), p_first)) g
        CROSS JOIN LATERAL (
            SELECT * FROM {s}.message WHERE g.whole AND bucket BETWEEN g.low AND g.high
                AND seq BETWEEN g.seqs[g.low_at] AND g.seqs[g.high_at]
            UNION ALL SELECT * FROM {s}.message WHERE NOT g.whole AND bucket BETWEEN g.low AND g.high
                AND seq = ANY (g.seqs[g.low_at : g.high_at])) m
    $body$""",
    # The tables were restored from another server, whose transactions had other numbers: what has a place is found again by
    # none, and all else by the next look.
    """CREATE OR REPLACE FUNCTION {s}.count_anew(p_topic integer) RETURNS void {plpgsql}
    DECLARE
        t record;
    BEGIN
        SELECT name, seen INTO t FROM {s}.topic WHERE id = p_topic FOR UPDATE;
        IF FOUND AND pg_snapshot_xmax(t.seen) > pg_snapshot_xmax(pg_current_snapshot()) THEN
            UPDATE {s}.message SET xid = pg_current_xact_id() WHERE topic = t.name;
            UPDATE {s}.message m SET xid = '0' FROM {s}.segment g WHERE g.topic = p_topic AND m.topic = t.name
                AND m.seq = ANY (g.seqs);
            UPDATE {s}.topic SET seen = '1:1:' WHERE id = p_topic;
        END IF;
    END $body$""",
    # Gives places to what has become visible since `seen`; and lets in what was scheduled, with an xid that no snapshot
    # will ever find again. The snapshot noted is that of the statement that looked.
    """CREATE OR REPLACE FUNCTION {s}.place(p_topic integer) RETURNS bigint {plpgsql}
    DECLARE
        t record;
        placed bigint;
        moment timestamptz := clock_timestamp();
    BEGIN
        SELECT name, seen INTO t FROM {s}.topic WHERE id = p_topic;
        IF FOUND AND pg_snapshot_xmax(t.seen) > pg_snapshot_xmax(pg_current_snapshot()) THEN
            PERFORM {s}.count_anew(p_topic);
            RETURN 0;
        END IF;
        IF NOT FOUND OR NOT (
            EXISTS (SELECT FROM {s}.message WHERE topic = t.name AND xid >= pg_snapshot_xmax(t.seen))
            OR EXISTS (SELECT FROM pg_snapshot_xip(t.seen) open(xid) CROSS JOIN LATERAL (
                SELECT FROM {s}.message m WHERE m.topic = t.name AND m.xid = open.xid LIMIT 1) m)
            OR EXISTS (SELECT FROM {s}.scheduled WHERE topic = t.name AND due <= moment))
        THEN
            RETURN 0;
        END IF;
        SELECT name, seen, next INTO t FROM {s}.topic WHERE id = p_topic FOR UPDATE;
        IF NOT FOUND THEN
            RETURN 0;
        END IF;
        WITH due AS (
            DELETE FROM {s}.scheduled WHERE seq = ANY (ARRAY(SELECT seq FROM {s}.scheduled
                WHERE topic = t.name AND due <= moment ORDER BY due, seq LIMIT 1000
                FOR UPDATE SKIP LOCKED))
            RETURNING *),
        let_in AS (
            INSERT INTO {s}.message (xid, topic, key, value, headers, id, time, target)
            SELECT '0', topic, key, value, headers, id, time, target FROM due ORDER BY due.due, due.seq
            RETURNING seq, bucket),
        fresh AS (
            SELECT seq, bucket FROM {s}.message WHERE topic = t.name AND xid >= pg_snapshot_xmax(t.seen)
            UNION ALL SELECT m.seq, m.bucket FROM pg_snapshot_xip(t.seen) open(xid) CROSS JOIN LATERAL (
                SELECT seq, bucket FROM {s}.message m WHERE m.topic = t.name AND m.xid = open.xid OFFSET 0) m
            UNION ALL SELECT seq, bucket FROM let_in),
        numbered AS (SELECT seq, bucket, row_number() OVER (ORDER BY seq) - 1 AS n FROM fresh),
        cut AS (
            INSERT INTO {s}.segment (topic, first, low, high, stored, seqs)
            SELECT p_topic, t.next + min(n), min(bucket), max(bucket), moment, array_agg(seq ORDER BY n)
            FROM numbered GROUP BY n / {segment})
        UPDATE {s}.topic SET next = next + (SELECT count(*) FROM numbered), seen = pg_current_snapshot()
        WHERE id = p_topic RETURNING next - t.next INTO placed;
        RETURN placed;
    END $body$""",
    # Groups that are missing have no row in the answer. `later`: in so many seconds there may be something untold.
    """CREATE OR REPLACE FUNCTION {s}.look(p_groups integer[], p_receivers bigint[])
    RETURNS TABLE (grp integer, ready boolean, later double precision) {plpgsql}
    DECLARE
        moment timestamptz;
        number integer;
    BEGIN
        FOR number IN SELECT DISTINCT topic FROM {s}.consumer_group WHERE id = ANY (p_groups) ORDER BY 1 LOOP
            PERFORM {s}.place(number);
        END LOOP;
        moment := clock_timestamp();
        RETURN QUERY
            SELECT g.id, g.cursor < t.next OR coalesce(q.due <= moment, false) OR coalesce(r.expires <= moment, false),
                extract(epoch FROM least(q.due, r.expires, s.due) - moment)::double precision
            FROM {s}.consumer_group g JOIN {s}.topic t ON t.id = g.topic
            LEFT JOIN LATERAL (SELECT min(due) AS due FROM {s}.queued
                WHERE grp = g.id AND due >= g.free) q ON true
            LEFT JOIN LATERAL (SELECT min(due) AS due FROM {s}.scheduled WHERE topic = t.name) s ON true
            LEFT JOIN LATERAL (SELECT min(expires) AS expires FROM {s}.receiver m
                WHERE m.grp = g.id AND m.id <> ALL (p_receivers)) r ON true
            WHERE g.id = ANY (p_groups);
    END $body$""",
)
