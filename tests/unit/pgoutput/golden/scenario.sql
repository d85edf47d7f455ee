-- What tests/unit/golden/capture.py runs on each server, one statement after another.
-- Statements between BEGIN and COMMIT make one transaction.

CREATE TYPE mood AS ENUM ('glad', 'it''s fine');
CREATE DOMAIN posint AS integer CHECK (VALUE > 0);
CREATE TYPE pair AS (a integer, b text);
CREATE TABLE by_key (id integer PRIMARY KEY, note text, big text);
ALTER TABLE by_key ALTER COLUMN big SET STORAGE EXTERNAL;
CREATE TABLE in_full (id bigint PRIMARY KEY, note text, big text);
ALTER TABLE in_full ALTER COLUMN big SET STORAGE EXTERNAL;
ALTER TABLE in_full REPLICA IDENTITY FULL;
CREATE TABLE by_index (id integer PRIMARY KEY, code text NOT NULL, tenant integer NOT NULL, note text);
CREATE UNIQUE INDEX by_index_code ON by_index (tenant, code);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code;
CREATE TABLE of_nothing (id integer, note text);
ALTER TABLE of_nothing REPLICA IDENTITY NOTHING;
CREATE TABLE child (id serial PRIMARY KEY, parent integer REFERENCES by_key);
CREATE TABLE "Odd ""Name" (id integer PRIMARY KEY, "a column, ""quoted""" text, "naïve 😀" text);
CREATE TABLE kinds (
  id integer PRIMARY KEY, flag boolean, i2 smallint, i8 bigint, f4 real, f8 double precision, n numeric,
  m mood, d posint, p pair, ints integer[], texts text[], bytes bytea, j json, jb jsonb,
  day date, at timestamptz, plain timestamp, clock time, span interval, u uuid
);
CREATE PUBLICATION cdc FOR ALL TABLES;
SELECT pg_create_logical_replication_slot('golden', 'pgoutput');
SELECT pg_replication_origin_create('elsewhere');

-- replica identity DEFAULT: insert, update, unchanged TOAST, key change, delete
INSERT INTO by_key VALUES (1, 'first', repeat('0123456789', 220)), (2, NULL, 'small');
UPDATE by_key SET note = 'changed' WHERE id = 1;
UPDATE by_key SET id = 3 WHERE id = 1;
UPDATE by_key SET big = NULL WHERE id = 3;
DELETE FROM by_key WHERE id = 3;

-- FULL: the old row is there, with its TOAST values
INSERT INTO in_full VALUES (9007199254740993, 'first', repeat('abcdefghij', 220));
UPDATE in_full SET note = NULL;
UPDATE in_full SET id = id + 1;
DELETE FROM in_full;

-- INDEX
INSERT INTO by_index VALUES (1, 'c', 7, 'first');
UPDATE by_index SET note = 'changed';
UPDATE by_index SET code = 'd';
DELETE FROM by_index;

-- NOTHING: only inserts are possible while the table is published
INSERT INTO of_nothing VALUES (1, 'only ever inserted');

-- values
INSERT INTO kinds VALUES (
  1, true, -32768, 9223372036854775807, 0.1, 1e300, 12345678901234567890.123456789012345678901234567890,
  'it''s fine', 7, ROW(1, 'x, "y"'), '[2:4]={1,2,3}', ARRAY['a,b', NULL, '"', ''], '\x00ff5c27',
  E'{"a": 1,\n "b": [true, null]}', '{"b": 1.50, "a": "\u00e9\\n"}',
  '0044-03-15 BC', '294276-12-31 23:59:59.999999+00', '2026-11-22 18:07:13.802498', '24:00:00',
  '1 year 2 months -3 days 04:05:06.789', '6f1c7a52-90f3-4a34-a3d0-0123456789ab'
);
INSERT INTO kinds VALUES (
  2, false, 0, -9223372036854775808, 'NaN', '-Infinity', 'NaN', 'glad', 1, ROW(NULL, ''), '{}', '{}', '',
  'null', 'null', 'infinity', '-infinity', 'infinity', '00:00:00', '0', '00000000-0000-0000-0000-000000000000'
);
INSERT INTO kinds VALUES (
  3, NULL, 1, 1, '-0', 'Infinity', 0.00, NULL, NULL, NULL, '{{1,2},{3,NULL}}', NULL, NULL,
  '{"$json": 1}', '{"$base64": "AA==", "other": 1}', NULL, NULL, NULL, NULL, NULL, NULL
);
INSERT INTO kinds (id) VALUES (4);
INSERT INTO "Odd ""Name" VALUES (1, E'tab\t, quote ", backslash \\, line\nbreak, \u0001', 'naïve 😀 \u2028');

-- several tables in one TRUNCATE
INSERT INTO child (parent) VALUES (2);
TRUNCATE by_key, of_nothing RESTART IDENTITY CASCADE;

-- a savepoint rolled back, a transaction rolled back, one that touches nothing published
BEGIN;
INSERT INTO by_key VALUES (10, 'kept', NULL);
SAVEPOINT s;
INSERT INTO by_key VALUES (11, 'rolled back', NULL);
ROLLBACK TO SAVEPOINT s;
INSERT INTO by_key VALUES (12, 'kept too', NULL);
COMMIT;
BEGIN;
INSERT INTO by_key VALUES (13, 'never committed', NULL);
ROLLBACK;
SELECT txid_current();

-- logical messages; the one outside any fate stays though its transaction is rolled back, and may end where a
-- commit record begins
BEGIN;
SELECT pg_logical_emit_message(true, 'with fate', 'in the transaction');
INSERT INTO by_key VALUES (20, 'beside a message', NULL);
COMMIT;
BEGIN;
SELECT pg_logical_emit_message(true, 'with fate', 'rolled back');
SELECT pg_logical_emit_message(false, 'without fate', '\x00ff'::bytea);
ROLLBACK;
BEGIN;
INSERT INTO by_key VALUES (21, 'a message right before its commit', NULL);
SELECT pg_logical_emit_message(false, 'without fate', 'right before a commit');
COMMIT;

-- a transaction that came from elsewhere
SELECT pg_replication_origin_session_setup('elsewhere');
BEGIN;
SELECT pg_replication_origin_xact_setup('0/1234', '2026-11-22 18:07:13+00');
INSERT INTO by_key VALUES (30, 'from elsewhere', NULL);
COMMIT;
SELECT pg_replication_origin_session_reset();

-- a table that changes, and one that is made anew under the same name
ALTER TABLE by_key DROP COLUMN big;
ALTER TABLE by_key ADD COLUMN added text DEFAULT 'a default';
INSERT INTO by_key VALUES (40, 'after ALTER TABLE');
DROP TABLE of_nothing;
CREATE TABLE of_nothing (id integer PRIMARY KEY);
INSERT INTO of_nothing VALUES (1);
