-- Optional: records schema changes in the stream, in order with the rows around them. It is installed only by
--   cdc init --ddl-sentinel          and removed by   cdc teardown --ddl-sentinel
--
-- Postgres does not put DDL into the WAL's logical stream. Two event triggers write a message with prefix cdc.ddl there
-- (pg_logical_emit_message), in the transaction of the change: if that commits, it is archived as an `m` line.
-- (Where savepoints stand between the change and the very next row, Postgres may put that row before the message.)
--
-- The message names what was changed and how, never the statement: its text may hold rows (CREATE TABLE ... AS VALUES).
-- Left out: temporary objects, the objects that an extension creates, and commands that change no shape (GRANT,
-- COMMENT, REFRESH).
--
-- An application's DDL never fails because of it: a failure here is a WARNING, and where wal_level is not logical
-- nothing is written. The function runs with the rights of the role that changes the schema and needs none of its own.
-- Only a superuser can create event triggers. Safe to apply again; a trigger that was disabled stays disabled.

CREATE OR REPLACE FUNCTION public.cdc_ddl_sentinel() RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    objects jsonb;
BEGIN
    IF current_setting('wal_level') <> 'logical'
        OR tg_event = 'ddl_command_end'
        AND tg_tag IN ('GRANT', 'REVOKE', 'ALTER DEFAULT PRIVILEGES', 'COMMENT', 'SECURITY LABEL',
                       'REFRESH MATERIALIZED VIEW') THEN
        RETURN;
    END IF;
    BEGIN
        IF tg_event = 'ddl_command_end' THEN
            SELECT jsonb_agg(jsonb_build_object('type', object_type, 'identity', object_identity, 'oid', objid::bigint))
              INTO objects
              FROM pg_event_trigger_ddl_commands()
             WHERE NOT in_extension
               AND schema_name IS DISTINCT FROM 'pg_temp'
               -- Triggers, rules and policies have no schema but that of their table.
               AND (schema_name IS NOT NULL OR object_identity IS NULL OR object_identity !~ ' on pg_temp\.');
        ELSE
            -- The objects that were named, and of those dropped with them the tables, columns, views and sequences: not
            -- each index, type and default.
            SELECT jsonb_agg(jsonb_build_object('type', object_type, 'identity', object_identity, 'oid', objid::bigint))
              INTO objects
              FROM pg_event_trigger_dropped_objects()
             WHERE (original OR object_type IN (
                       'table', 'table column', 'foreign table', 'view', 'materialized view', 'sequence'))
               AND NOT is_temporary
               AND (schema_name IS NOT NULL OR object_identity !~ ' on pg_temp\.');
        END IF;
        IF objects IS NOT NULL AND NOT (
            SELECT bool_and(has_function_privilege(oid, 'EXECUTE')) FROM pg_proc
             WHERE proname = 'pg_logical_emit_message' AND pronamespace = 'pg_catalog'::regnamespace
        ) THEN
            RAISE EXCEPTION 'permission denied for function pg_logical_emit_message';
        END IF;
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'cdc: this % is not recorded in the archive: %', tg_tag, sqlerrm;
        RETURN;
    END;
    -- This is outside of the block above, which is a subtransaction. Postgres places a message where its record ends,
    -- which is where the next row's record begins, and orders a transaction and its subtransactions by position alone.
    IF objects IS NOT NULL THEN
        PERFORM pg_logical_emit_message(
            true, 'cdc.ddl', jsonb_build_object('event', tg_event, 'tag', tg_tag, 'objects', objects)::text);
    END IF;
END
$$;

-- Without this, a function of this name that was there before would keep its owner, who could change what every schema
-- change runs.
ALTER FUNCTION public.cdc_ddl_sentinel() OWNER TO CURRENT_USER;
REVOKE ALL ON FUNCTION public.cdc_ddl_sentinel() FROM PUBLIC;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'cdc_ddl_command_end') THEN
        CREATE EVENT TRIGGER cdc_ddl_command_end ON ddl_command_end EXECUTE FUNCTION public.cdc_ddl_sentinel();
        -- ALWAYS: also where session_replication_role is replica, because the rows of such a session are published too.
        ALTER EVENT TRIGGER cdc_ddl_command_end ENABLE ALWAYS;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'cdc_sql_drop') THEN
        CREATE EVENT TRIGGER cdc_sql_drop ON sql_drop EXECUTE FUNCTION public.cdc_ddl_sentinel();
        ALTER EVENT TRIGGER cdc_sql_drop ENABLE ALWAYS;
    END IF;
END
$$;
