#!/bin/sh
# Makes what is secret, in the directory secrets/ beside this file: a certificate authority and the servers' certificates,
# ClickHouse's passwords, the keys of the sinks and of an operator, and the file of users. What is there already stays as
# it is. Wants openssl and power-fleet.
#
#   ./prepare.sh                         for compose.yaml: the servers are called nats-1, clickhouse-1, ...
#   ./prepare.sh DNS:fleet.example.com   the NATS servers are reached under that name too; IP:192.0.2.7: at that address
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets/users secrets/service
printf 'POWER_UID=%s\nPOWER_GID=%s\n' "$(id -u)" "$(id -g)" >.env
cd secrets

# What a command says is of interest only if it fails.
quietly() {
  said=$("$@" 2>&1) || {
    printf '%s\n' "$said" >&2
    exit 1
  }
}

# An elliptic key, and a request to certify it for a name.
request() {
  quietly openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$1" \
    -keyout "$1-key.pem" -out "$1.csr"
}

# A server's certificate: for its name, localhost, and what is given beside.
certificate() {
  name=$1
  shift
  [ ! -e "$name.pem" ] || return 0
  names="DNS:$name,DNS:localhost,IP:127.0.0.1"
  for other in "$@"; do names="$names,$other"; done
  request "$name"
  cat >"$name.ext" <<END
subjectAltName = $names
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth,clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
END
  quietly openssl x509 -req -in "$name.csr" -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 825 -sha256 \
    -extfile "$name.ext" -out "$name.pem"
  rm "$name.csr" "$name.ext"
}

if [ ! -e ca.pem ]; then
  request ca
  cat >ca.ext <<END
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
END
  quietly openssl x509 -req -in ca.csr -signkey ca-key.pem -days 3650 -sha256 -extfile ca.ext -out ca.pem
  rm ca.csr ca.ext
fi
for number in 1 2 3; do certificate "nats-$number" "$@"; done
for number in 1 2; do certificate "clickhouse-$number"; done

# A password for each of ClickHouse's users: the servers get the hashes, each program has a file with its URL.
if [ ! -e clickhouse.env ]; then
  printf 'CLICKHOUSE_INTERSERVER_PASSWORD=%s\n' "$(openssl rand -hex 24)" >unfinished.env
  for user in schema sink close operator reader; do
    password=$(openssl rand -hex 24)
    hash=$(printf %s "$password" | openssl dgst -sha256 -r | cut -d ' ' -f 1)
    printf 'POWER_%s_SHA256=%s\n' "$(echo "$user" | tr '[:lower:]' '[:upper:]')" "$hash" >>unfinished.env
    who="https://power_$user:$password"
    urls="$who@clickhouse-1:8443,$who@clickhouse-2:8443"
    printf 'POWER_FLEET_CLICKHOUSE=%s\nPOWER_SERVICE_FLEET=%s\n' "$urls" "$urls" >"$user.env"
  done
  mv unfinished.env clickhouse.env
fi

for role in sink operator; do
  [ -e "$role.key" ] || quietly power-fleet enroll "$role" --role "$role" --users users/devices.conf --key-out "$role.key"
done

# Nobody else gets into secrets/. The containers of NATS and ClickHouse have accounts of their own, which have to read:
chmod 755 users
chmod 644 users/devices.conf ca.pem nats-*.pem clickhouse-*.pem
echo "secrets/ is ready; then each device: power-fleet enroll ID --users secrets/users/devices.conf"
