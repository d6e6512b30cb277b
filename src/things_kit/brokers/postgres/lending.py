"""SQL: leases, and what is handed out and settled. The words in braces are filled in by `functions`."""

from typing import Final

LENDING: Final = (
    # A lane is one of its group alone, so that it is looked for without naming the group: an index that begins with groups
    # would seem as good to the planner, and lead through all that the group has queued.
    """CREATE OR REPLACE FUNCTION {s}.lane_of(p_ordering text, p_key bytea, p_group integer) RETURNS bigint LANGUAGE sql
    IMMUTABLE AS $body$
        SELECT CASE p_ordering WHEN 'key' THEN hashtextextended(encode(p_key, 'hex'), p_group) WHEN 'partition' THEN p_group END
    $body$""",
    # In the lanes given only the first queued message stays free: the others wait for it, and for its back-off.
    """CREATE OR REPLACE FUNCTION {s}.step_back(p_group integer, p_lanes bigint[]) RETURNS void {plpgsql}
    DECLARE
        lowest bigint := (SELECT low FROM {s}.consumer_group WHERE id = p_group);
    BEGIN
        UPDATE {s}.queued SET due = NULL WHERE ctid = ANY (ARRAY(
            SELECT b.ctid FROM unnest(p_lanes) l(lane) CROSS JOIN LATERAL (
                SELECT q.ctid FROM {s}.queued q WHERE q.lane = l.lane AND (q.lane, q.off) >= (l.lane, lowest) AND q.due IS NOT NULL
                AND q.off > (SELECT min(f.off) FROM {s}.queued f WHERE f.lane = l.lane AND (f.lane, f.off) >= (l.lane, lowest)) OFFSET 0) b));
    END $body$""",
    # In the lanes given, where nothing is free or handed out, the next ones become free.
    """CREATE OR REPLACE FUNCTION {s}.promote(p_group integer, p_lanes bigint[], p_moment timestamptz)
    RETURNS boolean {plpgsql}
    DECLARE
        lowest bigint := (SELECT low FROM {s}.consumer_group WHERE id = p_group);
    BEGIN
        UPDATE {s}.consumer_group SET free = p_moment WHERE id = p_group AND free > p_moment;  -- the clock was set back
        UPDATE {s}.queued SET due = p_moment WHERE ctid = ANY (ARRAY(
            SELECT n.ctid FROM unnest(p_lanes) l(lane) CROSS JOIN LATERAL (
                SELECT b.ctid FROM {s}.queued b WHERE b.lane = l.lane AND (b.lane, b.off) >= (l.lane, lowest)
                ORDER BY b.off LIMIT greatest({promoted} / greatest(cardinality(p_lanes), 1), 1)) n
            WHERE (SELECT f.due FROM {s}.queued f WHERE f.lane = l.lane AND (f.lane, f.off) >= (l.lane, lowest) ORDER BY f.off LIMIT 1) IS NULL
            AND NOT EXISTS (SELECT FROM {s}.loan o WHERE o.lane = l.lane AND (o.lane, o.off) >= (l.lane, lowest) OFFSET 0)));
        RETURN FOUND;
    END $body$""",
    # Gives each message that a receiver holds a row of its own, in which something may be noted. Under the lock of the group.
    """CREATE OR REPLACE FUNCTION {s}.unfold(p_receiver bigint) RETURNS void {plpgsql}
    BEGIN
        WITH folded AS (SELECT * FROM {s}.loan WHERE owner = p_receiver AND last > off),
        firsts AS (UPDATE {s}.loan SET last = off WHERE owner = p_receiver AND last > off)
        INSERT INTO {s}.loan (owner, off, last, grp, attempt)
        SELECT f.owner, n, n, f.grp, f.attempt FROM folded f CROSS JOIN LATERAL generate_series(f.off + 1, f.last) n;
    END $body$""",
    # Writes into a group's loans in which lanes they are, which was left out while nobody had to know.
    """CREATE OR REPLACE FUNCTION {s}.note_lanes(p_group integer) RETURNS void {plpgsql}
    DECLARE
        g record;
    BEGIN
        SELECT topic, unnoted INTO g FROM {s}.consumer_group WHERE id = p_group;
        IF g.unnoted IS NULL THEN
            RETURN;
        END IF;
        PERFORM {s}.unfold(id) FROM {s}.receiver WHERE grp = p_group;
        UPDATE {s}.loan o SET lane = {s}.lane_of(g.unnoted, (
            SELECT m.key FROM (SELECT seqs[o.off - first + 1] AS seq, low, high FROM {s}.segment
                WHERE topic = g.topic AND first <= o.off ORDER BY first DESC LIMIT 1) e
            JOIN {s}.message m ON m.seq = e.seq AND m.bucket BETWEEN e.low AND e.high), p_group)
        WHERE o.lane IS NULL AND o.owner = ANY (ARRAY(SELECT id FROM {s}.receiver WHERE grp = p_group));
        UPDATE {s}.consumer_group SET unnoted = NULL WHERE id = p_group;
    END $body$""",
    # Queues all that a receiver holds, due now, and forgets the receiver. Under the lock of the group.
    """CREATE OR REPLACE FUNCTION {s}.return_all(p_receiver bigint, p_group integer, p_attempts integer)
    RETURNS boolean {plpgsql}
    DECLARE
        lanes bigint[];
        moved boolean;
        moment timestamptz := clock_timestamp();
    BEGIN
        PERFORM {s}.note_lanes(p_group);
        PERFORM {s}.unfold(p_receiver);
        lanes := ARRAY(SELECT DISTINCT lane FROM {s}.loan WHERE owner = p_receiver AND lane IS NOT NULL);
        WITH back AS (DELETE FROM {s}.loan WHERE owner = p_receiver RETURNING *)
        INSERT INTO {s}.queued (grp, off, lane, due, attempt, suspect)
        SELECT grp, off, lane, moment, attempt + p_attempts, suspect FROM back;
        moved := FOUND;
        DELETE FROM {s}.receiver WHERE id = p_receiver;
        PERFORM {s}.step_back(p_group, lanes);
        PERFORM {s}.promote(p_group, lanes, moment);
        RETURN moved;
    END $body$""",
    """CREATE OR REPLACE FUNCTION {s}.leave(p_receiver bigint, p_group integer) RETURNS boolean {plpgsql}
    BEGIN
        PERFORM FROM {s}.consumer_group WHERE id = p_group FOR UPDATE;
        RETURN FOUND AND {s}.return_all(p_receiver, p_group, 0);
    END $body$""",
    """CREATE OR REPLACE FUNCTION {s}.drop_group(p_group integer) RETURNS void {plpgsql}
    BEGIN
        PERFORM FROM {s}.consumer_group WHERE id = p_group FOR UPDATE;
        DELETE FROM {s}.loan WHERE owner = ANY (ARRAY(SELECT id FROM {s}.receiver WHERE grp = p_group));
        DELETE FROM {s}.receiver WHERE grp = p_group;
        DELETE FROM {s}.queued WHERE grp = p_group;
        DELETE FROM {s}.consumer_group WHERE id = p_group;
    END $body$""",
    # Renews a lease, which may have run out unnoticed while nothing was held. Writes only when it is time to.
    """CREATE OR REPLACE FUNCTION {s}.renew(p_receiver bigint, p_group integer, p_lease double precision,
        p_held boolean, p_always boolean) RETURNS void {plpgsql}
    DECLARE
        until timestamptz;
    BEGIN
        SELECT expires INTO until FROM {s}.receiver WHERE id = p_receiver;
        IF FOUND AND NOT p_always AND until > clock_timestamp() + make_interval(secs => p_lease * 0.75) THEN
            RETURN;
        END IF;
        UPDATE {s}.receiver SET expires = clock_timestamp() + make_interval(secs => p_lease) WHERE id = p_receiver;
        IF FOUND THEN
            RETURN;
        END IF;
        PERFORM FROM {s}.consumer_group WHERE id = p_group;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the group was removed' USING ERRCODE = '{gone}';
        ELSIF p_held THEN
            RAISE EXCEPTION 'the lease has run out' USING ERRCODE = '{expired}';
        END IF;
        INSERT INTO {s}.receiver (id, grp, expires)
        VALUES (p_receiver, p_group, clock_timestamp() + make_interval(secs => p_lease));
    END $body$""",
    # Messages of which nobody has the lane, up to p_limit and a page, from `cursor` on; the others of them are queued.
    """CREATE OR REPLACE FUNCTION {s}.lend_fresh(p_group integer, p_receiver bigint, p_limit integer, p_ordering text,
        p_contended boolean, {page}) {plpgsql}
    DECLARE
        g record;
        last bigint;
        start bigint;
        lanes text := CASE WHEN p_contended THEN p_ordering ELSE 'none' END;
    BEGIN
        SELECT c.cursor, c.topic, c.name, c.low, t.next INTO g
        FROM {s}.consumer_group c JOIN {s}.topic t ON t.id = c.topic WHERE c.id = p_group;
        IF p_limit = 0 OR g.cursor = g.next OR (lanes = 'partition' AND (
            EXISTS (SELECT FROM {s}.queued WHERE lane = p_group AND (lane, off) >= (p_group, g.low))
            OR EXISTS (SELECT FROM {s}.loan WHERE lane = p_group AND (lane, off) >= (p_group, g.low) AND owner <> p_receiver)))
        THEN
            RETURN;
        END IF;
        last := g.cursor - 1;
        WHILE offsets IS NULL AND last < g.next - 1 LOOP
            start := last + 1;
            last := least(g.next - 1, last + CASE WHEN lanes = 'key' THEN least(4 * p_limit + 100, {scan}) ELSE p_limit END);
            IF lanes = 'none' THEN  -- nothing waits for anything: it is all taken, as far as a page goes
                IF (SELECT sum(octet_length(value)) FROM {s}.messages_at(g.topic, start, last)) > {page_bytes} THEN
                    last := coalesce((SELECT min(off) - 1 FROM (
                        SELECT off, sum(octet_length(value)) OVER (ORDER BY off) - octet_length(value) AS before
                        FROM {s}.messages_at(g.topic, start, last)) m WHERE before >= {page_bytes}), last);
                END IF;
                SELECT array_agg(m.off), array_agg(key), array_agg(value), array_agg(m.headers), array_agg(id), array_agg(stamp)
                INTO offsets, keys, payloads, headers, ids, times
                FROM (SELECT * FROM {s}.messages_at(g.topic, start, last)
                    WHERE target IS NULL OR target = g.name ORDER BY off) m;
                INSERT INTO {s}.loan (owner, off, last, grp, attempt)
                SELECT p_receiver, min(off), max(off), p_group, 1 FROM unnest(offsets) WITH ORDINALITY o(off, n) GROUP BY off - n;
                CONTINUE;
            END IF;
            WITH seen AS MATERIALIZED (
                SELECT *, lane IS NULL OR lanes = 'partition' OR (
                    NOT EXISTS (SELECT FROM {s}.queued q WHERE q.lane = m.lane AND (q.lane, q.off) >= (m.lane, g.low) OFFSET 0)
                    AND NOT EXISTS (SELECT FROM {s}.loan l
                        WHERE l.lane = m.lane AND (l.lane, l.off) >= (m.lane, g.low) AND l.owner <> p_receiver OFFSET 0)) AS flows
                FROM (SELECT *, {s}.lane_of(lanes, key, p_group) AS lane FROM {s}.messages_at(g.topic, start, last)) m
                WHERE target IS NULL OR target = g.name),
            fitting AS MATERIALIZED (
                SELECT off FROM (
                    SELECT off, sum(octet_length(value)) OVER (ORDER BY off) - octet_length(value) AS before
                    FROM seen WHERE flows) s
                WHERE before < {page_bytes} ORDER BY off LIMIT p_limit),
            border AS MATERIALIZED (
                SELECT CASE WHEN (SELECT count(*) FROM fitting) < (SELECT count(*) FROM seen WHERE flows)
                    THEN (SELECT max(off) FROM fitting) ELSE last END AS off),
            chosen AS MATERIALIZED (SELECT s.* FROM seen s, border b WHERE s.flows AND s.off <= b.off ORDER BY s.off),
            lent AS (
                INSERT INTO {s}.loan (owner, off, last, grp, lane, attempt)
                SELECT p_receiver, off, off, p_group, lane, 1 FROM chosen),
            held_back AS (
                INSERT INTO {s}.queued (grp, off, lane, attempt) SELECT p_group, s.off, s.lane, 1
                FROM seen s, border b WHERE NOT s.flows AND s.off <= b.off)
            SELECT array_agg(c.off), array_agg(c.key), array_agg(c.value), array_agg(c.headers), array_agg(c.id),
                array_agg(c.stamp), (SELECT off FROM border)
            INTO offsets, keys, payloads, headers, ids, times, last FROM chosen c;
        END LOOP;
        UPDATE {s}.consumer_group SET cursor = last + 1,
            unnoted = CASE WHEN p_contended OR p_ordering = 'none' THEN NULL ELSE p_ordering END WHERE id = p_group;
    END $body$""",
    # Messages of `queued` that are due, in lanes that nobody else has.
    """CREATE OR REPLACE FUNCTION {s}.lend_due(p_group integer, p_receiver bigint, p_topic integer, p_limit integer,
        {page}, OUT attempts integer[], OUT suspects integer[]) SET enable_sort = off {plpgsql}
    DECLARE
        moment timestamptz := clock_timestamp();
        g record;
    BEGIN
        SELECT low, free INTO g FROM {s}.consumer_group WHERE id = p_group;
        WITH found AS (
            SELECT d.*, m.key, m.value, m.headers, m.id, m.time,
                sum(octet_length(m.value)) OVER (ORDER BY d.due, d.off) - octet_length(m.value) AS before
            FROM (SELECT q.*, q.ctid AS place FROM {s}.queued q
                WHERE q.grp = p_group AND q.due >= g.free AND q.due <= moment AND (q.lane IS NULL OR NOT EXISTS (
                    SELECT FROM {s}.loan l WHERE l.lane = q.lane AND (l.lane, l.off) >= (q.lane, g.low) AND l.owner <> p_receiver OFFSET 0))
                ORDER BY q.due, q.off LIMIT p_limit) d
            CROSS JOIN LATERAL (SELECT seqs[d.off - first + 1] AS seq, low, high FROM {s}.segment
                WHERE topic = p_topic AND first <= d.off ORDER BY first DESC LIMIT 1) e
            JOIN {s}.message m ON m.seq = e.seq AND m.bucket BETWEEN e.low AND e.high),
        chosen AS MATERIALIZED (SELECT * FROM found WHERE before < {page_bytes} ORDER BY off),
        lent AS (
            INSERT INTO {s}.loan (owner, off, last, grp, lane, attempt, suspect)
            SELECT p_receiver, off, off, p_group, lane, attempt, suspect FROM chosen),
        taken AS (DELETE FROM {s}.queued WHERE ctid = ANY (ARRAY(SELECT place FROM chosen)))
        SELECT array_agg(c.off), array_agg(c.key), array_agg(c.value), array_agg(c.headers), array_agg(c.id),
            array_agg(c.time), array_agg(c.attempt), array_agg(c.suspect)
        INTO offsets, keys, payloads, headers, ids, times, attempts, suspects FROM chosen c;
        IF offsets IS NOT NULL THEN
            UPDATE {s}.consumer_group SET free = least(moment, (SELECT min(due) FROM {s}.queued
                WHERE grp = p_group AND due >= g.free)) WHERE id = p_group;
        END IF;
    END $body$""",
    # What is due comes first, in a row of its own: it is older than whatever nobody has seen.
    """CREATE OR REPLACE FUNCTION {s}.hand_out(p_group integer, p_receiver bigint, p_limit integer, p_ordering text,
        p_lease double precision, p_held boolean, {page}, OUT attempts integer[], OUT suspects integer[])
    RETURNS SETOF record {plpgsql}
    DECLARE
        g record;
        others boolean := false;
        lowest bigint;
        has_queued boolean;
        contended boolean;
        dead record;
    BEGIN
        SELECT topic, unnoted, cursor, low INTO g FROM {s}.consumer_group WHERE id = p_group FOR UPDATE;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the group was removed' USING ERRCODE = '{gone}';
        END IF;
        -- A loan that a power failure undoes is one that nobody holds any more: what settles it is on disk only after it.
        PERFORM set_config('synchronous_commit', 'off', true);
        PERFORM {s}.renew(p_receiver, p_group, p_lease, p_held, false);
        FOR dead IN SELECT id, expires <= clock_timestamp() AS expired FROM {s}.receiver
            WHERE grp = p_group AND id <> p_receiver
        LOOP
            IF dead.expired THEN
                PERFORM {s}.return_all(dead.id, p_group, 1);
            ELSE
                others := true;
            END IF;
        END LOOP;
        lowest := (SELECT min(off) FROM {s}.queued WHERE grp = p_group AND off >= g.low);
        has_queued := lowest IS NOT NULL;
        contended := (has_queued OR others) AND p_ordering <> 'none';
        IF contended OR g.unnoted <> p_ordering THEN
            PERFORM {s}.note_lanes(p_group);
        END IF;
        IF contended THEN
            lowest := least(g.cursor, lowest, (SELECT min(l.off) FROM {s}.receiver r CROSS JOIN LATERAL (
                SELECT min(off) AS off FROM {s}.loan WHERE owner = r.id AND off >= g.low) l WHERE r.grp = p_group));
            UPDATE {s}.consumer_group SET low = lowest WHERE id = p_group AND low < lowest - {behind};
        END IF;
        IF has_queued THEN
            SELECT * INTO offsets, keys, payloads, headers, ids, times, attempts, suspects
            FROM {s}.lend_due(p_group, p_receiver, g.topic, p_limit) WHERE offsets IS NOT NULL;
            IF FOUND THEN
                RETURN NEXT;
            END IF;
        END IF;
        RETURN QUERY SELECT f.*, NULL::integer[], NULL::integer[] FROM {s}.lend_fresh(
            p_group, p_receiver, p_limit - coalesce(cardinality(offsets), 0), p_ordering, contended) f WHERE f.offsets IS NOT NULL;
    END $body$""",
    # What is acknowledged comes as ranges, of which there are few. Tells whether others may have something now.
    """CREATE OR REPLACE FUNCTION {s}.settle(p_group integer, p_receiver bigint, p_firsts bigint[], p_lasts bigint[],
        p_released bigint[], p_delays double precision[], p_attempts integer[], p_aside boolean[]) RETURNS boolean {plpgsql}
    DECLARE
        lowest bigint;
        moment timestamptz;
        done_lanes bigint[];
        back_lanes bigint[];
        has_queued boolean;
    BEGIN
        SELECT low INTO lowest FROM {s}.consumer_group WHERE id = p_group FOR UPDATE;
        moment := clock_timestamp();
        has_queued := EXISTS (SELECT FROM {s}.queued WHERE grp = p_group AND off >= lowest);
        IF cardinality(p_released) > 0 THEN
            PERFORM {s}.note_lanes(p_group);
            PERFORM {s}.unfold(p_receiver);
        END IF;
        -- What is left of a row stays handed out: what was before, between and behind the ranges that are acknowledged
        WITH hit AS MATERIALIZED (
            SELECT l.*, r.first AS done_from, r.last AS done_to FROM unnest(p_firsts, p_lasts) r(first, last) CROSS JOIN LATERAL (
                SELECT ctid AS place, off, last, lane FROM {s}.loan WHERE owner = p_receiver AND off <= r.last
                AND last >= r.first AND off >= coalesce((SELECT max(b.off) FROM {s}.loan b
                    WHERE b.owner = p_receiver AND b.off <= r.first AND b.off >= lowest), r.first) OFFSET 0) l),
        done AS (DELETE FROM {s}.loan WHERE ctid = ANY (ARRAY(SELECT place FROM hit)) RETURNING off),
        left_over AS (
            INSERT INTO {s}.loan (owner, off, last, grp, attempt)
            SELECT p_receiver, p.start, p.stop, p_group, 1 FROM (
                SELECT coalesce(lag(done_to) OVER (PARTITION BY off ORDER BY done_from) + 1, off) AS start, done_from - 1 AS stop
                FROM hit WHERE last > off
                UNION ALL SELECT max(done_to) + 1, last FROM hit WHERE last > off GROUP BY off, last) p
            WHERE p.start <= p.stop AND (SELECT count(*) FROM done) > 0)  -- after the DELETE
        SELECT coalesce(array_agg(DISTINCT lane) FILTER (WHERE lane IS NOT NULL), '{}') INTO done_lanes FROM hit;
        IF cardinality(p_released) = 0 THEN
            RETURN has_queued AND {s}.promote(p_group, done_lanes, moment);
        END IF;
        -- First those alone that were acknowledged: only a lane where something is released may have to step back.
        PERFORM {s}.promote(p_group, done_lanes, moment);
        back_lanes := ARRAY(SELECT DISTINCT lane FROM {s}.loan
            WHERE owner = p_receiver AND off = ANY (p_released) AND lane IS NOT NULL);
        INSERT INTO {s}.queued (grp, off, lane, due, attempt)
        SELECT b.grp, b.off, CASE WHEN r.aside THEN NULL ELSE b.lane END,
            moment + make_interval(secs => r.delay), r.attempt
        FROM unnest(p_released, p_delays, p_attempts, p_aside) r(off, delay, attempt, aside) CROSS JOIN LATERAL (
            SELECT l.grp, l.off, l.lane FROM {s}.loan l WHERE l.owner = p_receiver AND l.off = r.off OFFSET 0) b;
        DELETE FROM {s}.loan WHERE owner = p_receiver AND off = ANY (p_released);
        PERFORM {s}.step_back(p_group, back_lanes);
        PERFORM {s}.promote(p_group, back_lanes, moment);
        RETURN true;
    END $body$""",
)
