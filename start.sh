#!/bin/sh
# Starts the api: it answers the platform. All settings come from the environment; arguments are passed on.
set -eu
directory=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if [ -x "$directory/servicebroker" ]; then
    exec "$directory/servicebroker" "$@"
fi
exec servicebroker "$@"
