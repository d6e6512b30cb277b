"""SQL: topics and groups, what waits for them, and what is swept. The words in braces are filled in by `functions`."""

from typing import Final

ADMINISTERING: Final = (
    # What this receiver could be handed now; NULL where its group is gone.
    """CREATE OR REPLACE FUNCTION {s}.waiting(p_group integer, p_receiver bigint, p_ordering text) RETURNS bigint {plpgsql}
    DECLARE
        fresh bigint;
        moment timestamptz := clock_timestamp();
    BEGIN
        PERFORM {s}.place(topic) FROM {s}.consumer_group WHERE id = p_group;
        SELECT t.next - g.cursor INTO fresh
        FROM {s}.consumer_group g JOIN {s}.topic t ON t.id = g.topic WHERE g.id = p_group;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the group was removed' USING ERRCODE = '{gone}';
        END IF;
        IF p_ordering = 'partition' AND (
            EXISTS (SELECT FROM {s}.queued WHERE lane = p_group)
            OR EXISTS (SELECT FROM {s}.loan WHERE lane = p_group AND owner <> p_receiver))
        THEN
            fresh := 0;
        END IF;
        RETURN fresh + (SELECT count(*) FROM {s}.queued q
            WHERE q.grp = p_group AND q.due <= moment AND (q.lane IS NULL OR NOT EXISTS (
                SELECT FROM {s}.loan l WHERE l.lane = q.lane AND l.owner <> p_receiver OFFSET 0)));
    END $body$""",
    """CREATE OR REPLACE FUNCTION {s}.mark(p_receiver bigint, p_offset bigint, p_suspect integer) RETURNS void {plpgsql}
    BEGIN
        PERFORM FROM {s}.consumer_group WHERE id = (SELECT grp FROM {s}.receiver WHERE id = p_receiver) FOR UPDATE;
        PERFORM {s}.unfold(p_receiver);
        UPDATE {s}.loan SET suspect = p_suspect WHERE owner = p_receiver AND off = p_offset;
    END $body$""",
    """CREATE OR REPLACE FUNCTION {s}.join_group(p_topic integer, p_group text, p_latest boolean, p_ephemeral boolean)
    RETURNS integer {plpgsql}
    DECLARE
        made integer;
    BEGIN
        SELECT id INTO made FROM {s}.consumer_group WHERE topic = p_topic AND name = p_group;
        IF FOUND THEN
            RETURN made;
        END IF;
        PERFORM {s}.place(p_topic);
        PERFORM FROM {s}.topic WHERE id = p_topic FOR UPDATE;
        INSERT INTO {s}.consumer_group (topic, name, cursor, ephemeral)
        SELECT id, p_group, CASE WHEN p_latest THEN next ELSE coalesce(
            (SELECT min(first) FROM {s}.segment WHERE topic = p_topic), next) END, p_ephemeral
        FROM {s}.topic WHERE id = p_topic ON CONFLICT DO NOTHING;
        SELECT id INTO made FROM {s}.consumer_group WHERE topic = p_topic AND name = p_group;
        RETURN made;
    END $body$""",
    """CREATE OR REPLACE FUNCTION {s}.declare_topic(p_topic text) RETURNS integer {plpgsql}
    DECLARE
        made integer;
    BEGIN
        SELECT id INTO made FROM {s}.topic WHERE name = p_topic;
        IF NOT FOUND THEN
            INSERT INTO {s}.topic (name) VALUES (p_topic) ON CONFLICT DO NOTHING;
            SELECT id INTO made FROM {s}.topic WHERE name = p_topic;
        END IF;
        RETURN made;
    END $body$""",
    """CREATE OR REPLACE FUNCTION {s}.declare_groups(p_topic text, p_groups text[]) RETURNS void {plpgsql}
    DECLARE
        number integer := {s}.declare_topic(p_topic);
        name text;
    BEGIN
        FOREACH name IN ARRAY p_groups LOOP
            PERFORM {s}.join_group(number, name, false, false);
        END LOOP;
    END $body$""",
    """CREATE OR REPLACE FUNCTION {s}.subscribe(p_topic text, p_group text, p_latest boolean, p_ephemeral boolean,
        p_create boolean, p_lease double precision, OUT receiver bigint, OUT grp integer) {plpgsql}
    DECLARE
        number integer;
    BEGIN
        SELECT id INTO number FROM {s}.topic WHERE name = p_topic;
        IF NOT FOUND AND NOT p_create THEN
            RAISE EXCEPTION 'the topic % does not exist', quote_literal(p_topic) USING ERRCODE = '{no_topic}';
        END IF;
        number := {s}.declare_topic(p_topic);
        IF NOT p_create AND NOT p_ephemeral THEN
            PERFORM FROM {s}.consumer_group WHERE topic = number AND name = p_group;
            IF NOT FOUND THEN
                RAISE EXCEPTION 'the consumer group % does not exist', quote_literal(p_group)
                USING ERRCODE = '{no_group}';
            END IF;
        END IF;
        grp := {s}.join_group(number, p_group, p_latest, p_ephemeral);
        INSERT INTO {s}.receiver (grp, expires) VALUES (grp, clock_timestamp() + make_interval(secs => p_lease))
        RETURNING id INTO receiver;
    END $body$""",
    """CREATE OR REPLACE FUNCTION {s}.remove(p_topic text, p_group text) RETURNS void {plpgsql}
    DECLARE
        number integer;
    BEGIN
        SELECT id INTO number FROM {s}.topic WHERE name = p_topic FOR UPDATE;
        PERFORM {s}.drop_group(id) FROM {s}.consumer_group
            WHERE topic = number AND (p_group IS NULL OR name = p_group);
        IF p_group IS NULL THEN
            DELETE FROM {s}.segment WHERE topic = number;
            DELETE FROM {s}.scheduled WHERE topic = p_topic;
            DELETE FROM {s}.message WHERE topic = p_topic;
            DELETE FROM {s}.topic WHERE id = number;
        END IF;
    END $body$""",
    # A group that is missing would begin at the earliest, and a topic that is missing have all that is published to it. What
    # is another group's alone does not count. One statement, so that no message is seen in two places, or in none.
    """CREATE OR REPLACE FUNCTION {s}.lag(p_topic text, p_group text) RETURNS bigint LANGUAGE plpgsql AS $body$
    #variable_conflict use_column
    DECLARE
        moment timestamptz := clock_timestamp();
    BEGIN
        PERFORM {s}.place(id) FROM {s}.topic WHERE name = p_topic;
        RETURN coalesce((
            SELECT CASE WHEN g.id IS NULL
                THEN (SELECT coalesce(sum(cardinality(seqs)), 0) FROM {s}.segment WHERE topic = t.id)
                ELSE t.next - g.cursor + (SELECT count(*) FROM {s}.queued WHERE grp = g.id)
                    + (SELECT coalesce(sum(l.last - l.off + 1), 0)
                        FROM {s}.receiver r JOIN {s}.loan l ON l.owner = r.id WHERE r.grp = g.id) END
                - (SELECT count(*) FROM {s}.message m JOIN {s}.segment s ON s.topic = t.id
                        AND m.seq BETWEEN s.seqs[1] AND s.seqs[cardinality(s.seqs)] AND m.seq = ANY (s.seqs)
                        AND s.first + width_bucket(m.seq, s.seqs) > coalesce(g.cursor, 0)
                    WHERE m.topic = p_topic AND m.target <> p_group)
            FROM {s}.topic t LEFT JOIN {s}.consumer_group g ON g.topic = t.id AND g.name = p_group WHERE t.name = p_topic),
            (SELECT count(*) FROM {s}.message WHERE topic = p_topic AND coalesce(target = p_group, true)))
        + (SELECT count(*) FROM {s}.scheduled
            WHERE topic = p_topic AND due <= moment AND coalesce(target = p_group, true));
    END $body$""",
    # Forgets what is old and settled by all groups of its topic, and the ephemeral groups of processes that died.
    """CREATE OR REPLACE FUNCTION {s}.sweep(p_retain double precision) RETURNS void {plpgsql}
    DECLARE
        t record;
        settled bigint;
    BEGIN
        PERFORM {s}.drop_group(g.id) FROM {s}.receiver r JOIN {s}.consumer_group g ON g.id = r.grp
            WHERE g.ephemeral AND r.expires < clock_timestamp();
        FOR t IN SELECT id FROM {s}.topic ORDER BY id LOOP
            settled := (SELECT min(cursor) FROM {s}.consumer_group WHERE topic = t.id);
            WITH gone AS (
                DELETE FROM {s}.segment WHERE topic = t.id AND first = ANY (ARRAY(
                    SELECT s.first FROM {s}.segment s WHERE s.topic = t.id
                        AND s.stored < clock_timestamp() - make_interval(secs => p_retain)
                        AND s.first + cardinality(s.seqs) <= settled
                        AND NOT EXISTS (SELECT FROM {s}.consumer_group g JOIN {s}.queued q ON q.grp = g.id
                            AND q.off >= s.first AND q.off < s.first + cardinality(s.seqs) WHERE g.topic = t.id)
                        AND NOT EXISTS (SELECT FROM {s}.consumer_group g JOIN {s}.receiver r ON r.grp = g.id
                            JOIN {s}.loan l ON l.owner = r.id
                            AND l.last >= s.first AND l.off < s.first + cardinality(s.seqs) WHERE g.topic = t.id)
                    ORDER BY s.first LIMIT 10000)) RETURNING seqs)
            DELETE FROM {s}.message_default
            WHERE seq = ANY (ARRAY(SELECT unnest(seqs) FROM gone)) AND EXISTS (SELECT FROM {s}.message_default);
        END LOOP;
    END $body$""",
)
