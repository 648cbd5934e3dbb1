#!/usr/bin/env bash
# The dashboard's gate on a fresh Debian 12. The client's gate installs Node, and a Python with the
# service; Chromium is from Debian.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

step() { printf '\n=== dashboard: %s (%d s)\n' "$*" "$SECONDS"; }

step "chromium, node, python"
if ! command -v "${CHROMIUM:-chromium}" >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium >/dev/null
fi
tools=$(bash ../client/ci.sh env)
eval "$tools"
export POWER_PYTHON PATH=$NODE20:$PATH NPM_CONFIG_FUND=false NPM_CONFIG_AUDIT=false

step "install and build"
(cd ../client && npm ci && npm run build)
npm ci
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
npm run build -- --outDir "$built" --emptyOutDir # elsewhere: other tests use dist meanwhile

step "the built page is the one in the repository"
if ! diff -r "$built" dist; then
  echo "integrations/dashboard/dist is not what was built: run npm run build, and commit it" >&2
  exit 1
fi

step "lint, types"
npm run lint
npm run types

step "tests"
npm test
TZ=America/St_Johns npm test

step "tests against the real service"
npm run e2e

step "done"
