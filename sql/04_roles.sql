-- Two roles, because REPLICATION is a great power: who has it can read every table through a slot, take a base backup of
-- the whole cluster, and drop anybody's slot. Only the service itself logs in with it.
--
--   cdc_reader      reads the published tables, and what status screens need. For status, dashboards, comparisons.
--   cdc_replicator  REPLICATION, and a member of cdc_reader. This is the role of postgres.dsn: the service streams, and
--                   copies the rows that were there before it, in one snapshot, which takes both from one role. The
--                   membership gives away nothing: the stream shows the same rows. It writes to no table.
--
-- Neither has a password here. Give them one where they come over the network:   \password cdc_replicator
-- or none where they come over a Unix socket, with a line in pg_hba.conf:         local all cdc_replicator peer map=cdc
-- A line above all others in pg_hba.conf keeps the base backups from the role and leaves logical replication alone,
-- because the word "replication" there means physical replication only:           host replication cdc_replicator all reject
--
-- On a managed server REPLICATION is often given as a role: GRANT rds_replication TO cdc_replicator.

DO $$
BEGIN
    -- Roles belong to the cluster, so another database may have made them already.
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'cdc_reader') THEN
        CREATE ROLE cdc_reader LOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'cdc_replicator') THEN
        CREATE ROLE cdc_replicator LOGIN REPLICATION;
    END IF;
    IF NOT pg_has_role('cdc_replicator', 'cdc_reader', 'USAGE') THEN
        GRANT cdc_reader TO cdc_replicator;
    END IF;
    -- Says since when a transaction is open that holds back WAL or the creation of the slot. It also shows the texts of
    -- other people's queries. Without it the same screens name the process, and not its age.
    IF NOT pg_has_role('cdc_reader', 'pg_read_all_stats', 'USAGE') THEN
        GRANT pg_read_all_stats TO cdc_reader;
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO cdc_reader', current_database());
END
$$;

GRANT USAGE ON SCHEMA public TO cdc_reader;
GRANT SELECT ON public.turns, public.outbox TO cdc_reader;
