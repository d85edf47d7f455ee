-- The publication says which tables leave the database. It must exist before the slot: Postgres looks it up as it was
-- at each change, so a slot that meets a change from before the publication fails, each time again (42704).
--
-- For tables of your own: ALTER PUBLICATION cdc ADD TABLE public.orders; each needs a primary key, or Postgres refuses
-- the application's own UPDATEs and DELETEs on it. Tables that you add stay when this is applied again.

DO $$
DECLARE
    wanted text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = 'cdc') THEN
        CREATE PUBLICATION cdc WITH (publish = 'insert, update, delete, truncate');
    END IF;
    FOREACH wanted IN ARRAY ARRAY['turns', 'outbox'] LOOP
        IF NOT EXISTS (
            SELECT FROM pg_publication_tables WHERE pubname = 'cdc' AND schemaname = 'public' AND tablename = wanted
        ) THEN
            EXECUTE format('ALTER PUBLICATION cdc ADD TABLE public.%I', wanted);
        END IF;
    END LOOP;
END
$$;
