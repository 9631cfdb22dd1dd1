#!/bin/sh
# Sets the superuser's password from the environment, as the usual image does, and becomes the server.
set -eu
password=$(printf '%s' "${POSTGRES_PASSWORD:?}" | sed "s/'/''/g")
printf "ALTER USER postgres PASSWORD '%s'\n" "$password" | postgres --single -D "$PGDATA" postgres > /dev/null
exec postgres "$@"
