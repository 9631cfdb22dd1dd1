#!/bin/sh
# Sets root's password from the environment, as the usual image does, and becomes the server.
set -eu
password=$(printf '%s' "${MYSQL_ROOT_PASSWORD:?}" | sed "s/[\\\\']/\\\\&/g")
cat > /run/mysqld/init.sql <<SQL
CREATE OR REPLACE USER root@localhost IDENTIFIED BY '$password';
GRANT ALL PRIVILEGES ON *.* TO root@localhost WITH GRANT OPTION;
CREATE OR REPLACE USER root@'%' IDENTIFIED BY '$password';
GRANT ALL PRIVILEGES ON *.* TO root@'%' WITH GRANT OPTION;
${MYSQL_DATABASE:+CREATE DATABASE IF NOT EXISTS \`$MYSQL_DATABASE\`;}
SQL
exec mariadbd --init-file=/run/mysqld/init.sql "$@"
