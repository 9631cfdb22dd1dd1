#!/bin/sh
# Backs up a directory with restic while the databases of namespace shop are read-only: restic.sh DIRECTORY...
# `exec`, so that a signal to this script is one to podhook. podhook ends as restic did; 121 to 125 are its own codes.
exec podhook around "$(dirname "$0")/../hooks/mariadb-plan.yaml" -- restic backup --tag mariadb "$@"
