#!/bin/sh
# Dumps a database into a file, compressed: mysqldump.sh FILE [mysqldump's arguments]
# A pipe ends as its last command did: without pipefail a dump that broke off would count as a good one (sh may not have
# it, bash does). The file gets its name only when it is whole.
exec podhook around "$(dirname "$0")/../hooks/mariadb-plan.yaml" -- bash -o pipefail -c '
  file=$1; shift
  mysqldump --single-transaction "$@" | gzip > "$file.part" && mv "$file.part" "$file"
' bash "$@"
