#!/bin/sh
# Run once, by Postgres's own image, when the data folder is new: a user and a database each for the service and MLflow.
set -eu
for name in rcmae mlflow; do
  psql --username "$POSTGRES_USER" --dbname postgres --set ON_ERROR_STOP=1 --set name="$name" <<'SQL'
\set file /run/secrets/ :name _db_password
\set password `cat :file`
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
