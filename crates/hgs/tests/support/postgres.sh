#!/bin/sh
# A PostgreSQL server of its own, until standard input ends: also when the test that holds the other end is killed.
# Prints the directory of its socket, and removes the file $1 at the end. The superuser is "hgs"; access to the socket is
# enough to connect.
set -eu
trap '' INT HUP
bin=$(ls -d /usr/lib/postgresql/*/bin 2> /dev/null | sort -V | tail -n 1)
[ -n "$bin" ] || {
    echo "PostgreSQL is not installed: apt-get install postgresql, or run scripts/bootstrap" >&2
    exit 1
}
folder=$(mktemp -d "${TMPDIR:-/tmp}/drydock-postgres.XXXXXX")
trap 'rm -rf "$folder" "$1"' EXIT
as=
if [ "$(id -u)" = 0 ]; then
    # It refuses to run as root; its package made this user.
    chown postgres "$folder"
    as="runuser -u postgres --"
fi
cd "$folder"
$as "$bin/initdb" -D "$folder/data" -A trust -U hgs --no-sync -E UTF8 --locale=C > "$folder.log" 2>&1 ||
    { cat "$folder.log" >&2; rm -f "$folder.log"; exit 1; }
rm -f "$folder.log"
$as "$bin/pg_ctl" -D "$folder/data" -w -s -l "$folder/data/log" start \
    -o "-k '$folder' -c listen_addresses='' -c fsync=off -c max_connections=300" < /dev/null > /dev/null
echo "$folder"
cat > /dev/null
$as "$bin/pg_ctl" -D "$folder/data" -w -s -m immediate stop > /dev/null 2>&1
