#!/bin/sh
# Has Velero back up namespace shop while its databases are read-only.
# velero ends with 0 although the backup failed, so the script asks what it came to: the post hooks go by that.
name="shop-$(date -u +%Y%m%d%H%M%S)"
exec podhook around "$(dirname "$0")/../hooks/mariadb-plan.yaml" -- sh -c '
  velero backup create "$1" --include-namespaces shop --wait || exit
  phase=$(velero backup get "$1" -o json | jq -r .status.phase)
  echo "backup $1: $phase"
  [ "$phase" = Completed ]
' sh "$name"
