#!/bin/sh
# Starts the worker: it carries out what the api has written down, in AWS. Arguments are passed on.
set -eu
directory=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if [ -x "$directory/servicebroker" ]; then
    exec "$directory/servicebroker" -background-tasks "$@"
fi
exec servicebroker -background-tasks "$@"
