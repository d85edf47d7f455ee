-- Two roles, because REPLICATION is a great power: a role that has it can read every table through a slot, take a base
-- backup of the whole cluster, and drop any slot. Only the service itself logs in with it.
--
--   cdc_reader      reads the published tables, and what status screens need. For status, dashboards, comparisons.
--   cdc_replicator  has REPLICATION, and is a member of cdc_reader. It is the role of postgres.dsn: the service
--                   streams, and copies the rows that exist already in one snapshot, so one role needs both rights.
--                   The membership grants nothing new: the stream shows the same rows. It writes to no table.
--
-- Neither has a password here. Set one where the role connects over the network:  \password cdc_replicator
-- None is needed over a Unix socket, with this line in pg_hba.conf:               local all cdc_replicator peer map=cdc
-- This line above all others in pg_hba.conf denies the role base backups and leaves logical replication alone, because
-- the word "replication" there means physical replication only:          host replication cdc_replicator all reject
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
    -- Lets the role see since when a transaction is open that holds back WAL or the creation of the slot. It also shows
    -- the text of other roles' queries. Without it the same screens name the process, but not its age.
    IF NOT pg_has_role('cdc_reader', 'pg_read_all_stats', 'USAGE') THEN
        GRANT pg_read_all_stats TO cdc_reader;
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO cdc_reader', current_database());
END
$$;

GRANT USAGE ON SCHEMA public TO cdc_reader;
GRANT SELECT ON public.turns, public.outbox TO cdc_reader;
