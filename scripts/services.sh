#!/usr/bin/env bash
# Starts what tests marked `services` need: a private PostgreSQL in .services/postgres, on loopback and a Unix socket.
# Idempotent. `scripts/services.sh stop` stops it and keeps its data. Tests read .services/env.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 077

services=$PWD/.services
mkdir -p "$services"
chmod 755 "$services"
exec 9>"$services/lock"
flock 9 # two runs at once: the second waits, then finds everything there

say() { echo "services: $*" >&2; }

binaries() { # the newest PostgreSQL installed, or nothing
  local found
  found=$(find /usr/lib/postgresql -maxdepth 3 -name pg_ctl 2>/dev/null | sort -V | tail -1)
  if [ -n "$found" ]; then dirname "$found"; elif command -v pg_ctl >/dev/null; then dirname "$(command -v pg_ctl)"; fi
}

install_postgres() {
  local root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { say "PostgreSQL is missing: install it as root (apt-get install postgresql)"; exit 1; }
    root=(sudo)
  fi
  say "installing PostgreSQL"
  # Only our own cluster is wanted; Debian's package would otherwise make and start one.
  if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    "${root[@]}" mkdir -p /etc/postgresql-common
    echo "create_main_cluster = false" | "${root[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
    "${root[@]}" chmod 644 /etc/postgresql-common/createcluster.conf
  fi
  "${root[@]}" apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install -y -qq postgresql >&2
}

# PostgreSQL refuses to run as root: the user `postgres` of its package does.
as_owner() {
  if [ "$(id -u)" -eq 0 ]; then (cd / && runuser -u postgres -- "$@" 9>&-); else (cd / && "$@" 9>&-); fi
}

place() { # the cluster's folder: beside the checkout, or where postgres may go when the checkout is private
  local home=$services/postgres
  if [ "$(id -u)" -eq 0 ]; then
    if ! runuser -u postgres -- test -x "$services"; then
      home=/var/tmp/yard-postgres-$(echo "$PWD" | sha256sum | cut -c1-12)
    fi
    install -d -m 700 -o postgres "$home"
  else
    mkdir -p "$home"
  fi
  echo "$home"
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

running() { as_owner "$bin/pg_ctl" status -D "$home/data" >/dev/null 2>&1; }

create() {
  local password_file=$home/password
  say "creating a cluster in $home"
  head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$password_file"
  [ "$(id -u)" -ne 0 ] || chown postgres "$password_file"
  # Sorting by a language on purpose: what compares bytewise must say so itself.
  local options=(-D "$home/data" -U yard --auth=scram-sha-256 "--pwfile=$password_file" -E UTF8)
  as_owner "$bin/initdb" "${options[@]}" --locale=C.UTF-8 --locale-provider=icu --icu-locale=en-US >/dev/null 2>&1 || {
    rm -rf "$home/data"
    as_owner "$bin/initdb" "${options[@]}" --locale=C.UTF-8 >/dev/null
  }
}

start() {
  local port sockets=$home
  port=$(free_port)
  # A socket's path has at most 107 bytes.
  if [ ${#home} -gt 80 ]; then sockets=$(as_owner mktemp -d /tmp/yard-pg-XXXXXX); fi
  # No fsync: a test's data need not survive the machine.
  as_owner "$bin/pg_ctl" start -w -t 60 -D "$home/data" -l "$home/log" \
    -o "-h 127.0.0.1 -p $port -k $sockets -c fsync=off -c full_page_writes=off -c max_connections=100" >/dev/null || {
    say "PostgreSQL did not start; its log:"
    tail -20 "$home/log" >&2
    exit 1
  }
  local password
  password=$(cat "$home/password")
  PGPASSWORD=$password "$bin/psql" -q -h 127.0.0.1 -p "$port" -U yard -d postgres -tAc \
    "SELECT 1 FROM pg_database WHERE datname = 'yard_test'" | grep -q 1 ||
    PGPASSWORD=$password "$bin/psql" -q -h 127.0.0.1 -p "$port" -U yard -d postgres -c "CREATE DATABASE yard_test"
  echo "YARD_TEST_POSTGRES_URL=postgresql://yard:$password@127.0.0.1:$port/yard_test" >"$services/env"
  say "PostgreSQL answers on 127.0.0.1:$port"
}

bin=$(binaries)
case ${1:-start} in
start)
  if [ -z "$bin" ]; then
    install_postgres
    bin=$(binaries)
    [ -n "$bin" ] || { say "PostgreSQL was not found after installing it"; exit 1; }
  fi
  home=$(place)
  [ -e "$home/data/PG_VERSION" ] || create
  if running && [ -e "$services/env" ]; then
    say "PostgreSQL is running"
  else
    if running; then as_owner "$bin/pg_ctl" stop -w -m fast -D "$home/data" >/dev/null; fi
    start
  fi
  ;;
stop)
  rm -f "$services/env"
  [ -n "$bin" ] || exit 0
  home=$(place)
  if running; then
    as_owner "$bin/pg_ctl" stop -w -m fast -D "$home/data" >/dev/null
    say "PostgreSQL has stopped"
  fi
  ;;
*)
  say "usage: scripts/services.sh [start|stop]"
  exit 2
  ;;
esac
