#!/usr/bin/env bash
# A real S3 server for `make test-s3`: OpenStack Swift with s3api, from PyPI, in build/swift, on loopback.
# It checks signatures and checksums, which the mock does not. `scripts/swift.sh start` prints the variables that tests read;
# `scripts/swift.sh stop` stops what was started and removes its data. One at a time in a checkout.
set -euo pipefail
cd "$(dirname "$0")/.."

build=$PWD/build/swift
venv=$build/venv
data=$build/data
say() { echo "swift: $*" >&2; }

install() { # an environment of its own: Swift's dependencies are none of ours
  [ -e "$venv/.installed" ] && return
  say "installing Swift in $venv"
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install -q --disable-pip-version-check "swift==2.38.3" "setuptools<81" >&2
  touch "$venv/.installed"
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

rings() { # account_port container_port object_port
  local name port
  for name in account container object; do
    port=$1
    shift
    "$venv/bin/swift-ring-builder" "$data/etc/$name.builder" create 10 1 1
    "$venv/bin/swift-ring-builder" "$data/etc/$name.builder" add "r1z1-127.0.0.1:$port/sda1" 1
    "$venv/bin/swift-ring-builder" "$data/etc/$name.builder" rebalance
    cat >"$data/etc/$name-server.conf" <<CONF
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = $port
devices = $data/dev
mount_check = false
user = $(id -un)
swift_dir = $data/etc
workers = 1
log_name = $name
log_level = WARNING

[pipeline:main]
pipeline = $name-server

[app:$name-server]
use = egg:swift#$name
CONF
  done >"$data/rings.log"
}

configure() { # proxy_port
  cat >"$data/etc/swift.conf" <<CONF
[swift-hash]
swift_hash_path_prefix = yard
swift_hash_path_suffix = yard

[storage-policy:0]
name = one
default = yes
policy_type = replication
CONF
  cat >"$data/etc/proxy-server.conf" <<CONF
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = $1
user = $(id -un)
swift_dir = $data/etc
workers = 1
log_level = WARNING

[pipeline:main]
pipeline = catch_errors gatekeeper proxy-logging cache listing_formats bulk tempurl s3api tempauth copy slo dlo versioned_writes symlink proxy-logging proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true

[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin

[filter:s3api]
use = egg:swift#s3api
allow_multipart_uploads = yes
s3_acl = false
location = us-east-1

[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1

[filter:proxy-logging]
use = egg:swift#proxy_logging
CONF
  local name
  for name in catch_errors gatekeeper listing_formats bulk tempurl copy slo dlo versioned_writes symlink; do
    printf '\n[filter:%s]\nuse = egg:swift#%s\n' "$name" "$name" >>"$data/etc/proxy-server.conf"
  done
}

start() {
  stop
  install
  mkdir -p "$data/etc" "$data/dev/sda1"
  local account container object proxy name
  account=$(free_port) container=$(free_port) object=$(free_port) proxy=$(free_port)
  rings "$account" "$container" "$object"
  configure "$proxy"
  for name in account container object proxy; do
    "$venv/bin/swift-$name-server" "$data/etc/$name-server.conf" >"$data/$name.log" 2>&1 </dev/null &
    echo $! >>"$data/pids"
  done
  local tries=0
  until python3 -c "import urllib.request as r; r.urlopen('http://127.0.0.1:$proxy/info', timeout=2)" 2>/dev/null; do
    tries=$((tries + 1))
    if [ $tries -gt 120 ]; then
      say "it did not start; see $data"
      tail -n 20 "$data"/*.log >&2
      exit 1
    fi
    sleep 0.5
  done
  say "answers on 127.0.0.1:$proxy"
  echo "YARD_TEST_S3_ENDPOINT=http://127.0.0.1:$proxy"
  echo "YARD_TEST_S3_KEY=test:tester"
  echo "YARD_TEST_S3_SECRET=testing"
}

stop() {
  local pid
  if [ -e "$data/pids" ]; then
    while read -r pid; do
      # Only what is still ours: a number may belong to somebody else by now.
      if tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$data/etc/"; then
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 50); do
          kill -0 "$pid" 2>/dev/null || break
          sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null || true
      fi
    done <"$data/pids"
  fi
  rm -rf "$data"
}

case ${1:-} in
start) start ;;
stop) stop ;;
*)
  say "usage: scripts/swift.sh start|stop"
  exit 2
  ;;
esac
