#!/usr/bin/env bash
# Make sure that PostgreSQL's server programs are there. Does nothing where they are; starts nothing.
set -euo pipefail

if [ -n "${CLOUDSEG_POSTGRES:-}" ] && [ -x "${CLOUDSEG_POSTGRES}/initdb" ]; then
    exit 0
fi
if command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
    exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
        echo "The database tests need PostgreSQL's server, and this account may not install it." >&2
        echo "Ask an administrator for: apt-get install postgresql" >&2
        echo "or name the folder of its programs in the variable CLOUDSEG_POSTGRES." >&2
        exit 1
    fi
    as_root=(sudo -n)
fi
if ! command -v apt-get >/dev/null; then
    echo "The database tests need PostgreSQL's server, and there is no apt-get here to install it with." >&2
    echo "Install it by your system's own means, or name its programs' folder in CLOUDSEG_POSTGRES." >&2
    exit 1
fi

echo "installing postgresql for the database tests ..."
"${as_root[@]}" apt-get update -qq
# No cluster of Debian's own: the tests make theirs, in a folder, and end it.
"${as_root[@]}" mkdir -p /etc/postgresql-common
printf 'create_main_cluster = false\n' | "${as_root[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends postgresql >/dev/null
ls /usr/lib/postgresql/*/bin/initdb >/dev/null
echo "installed postgresql"
